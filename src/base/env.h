/* env.h - the only place that reads environment variables. */
#ifndef YK_BASE_ENV_H
#define YK_BASE_ENV_H

/* Values are read at each call; NULL or empty when unset. */
const char *yk_env_fail_alloc(void);  /* YOKE_FAIL_ALLOC=k: the k-th allocation fails (fault_injection builds) */
const char *yk_env_module_path(void); /* YOKE_MODULE_PATH: where GPU modules are searched first */
const char *yk_env_cache_home(void);  /* XDG_CACHE_HOME */
const char *yk_env_home(void);        /* HOME */
/* YOKE_CUDA_HOLD, else CUDA_LAUNCH_BLOCKING: not empty and not 0: mailboxes without stream memory operations (gpu/cuda/box.c) */
const char *yk_env_cuda_hold(void);
const char *yk_env_cuda_mma(void); /* YOKE_CUDA_MMA=0: products without matrix units, to compare with (gpu/cuda/mma.k.h) */
const char *yk_env_isa(void);      /* YOKE_ISA: highest instruction set to use, as yk_engine_opts.isa */
const char *yk_env_no_color(void); /* NO_COLOR: when not empty, nothing is coloured */

#endif
