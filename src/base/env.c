#include "src/base/env.h"

#include <stdlib.h>

const char *yk_env_fail_alloc(void)
{
    return getenv("YOKE_FAIL_ALLOC");
}
const char *yk_env_module_path(void)
{
    return getenv("YOKE_MODULE_PATH");
}
const char *yk_env_cache_home(void)
{
    return getenv("XDG_CACHE_HOME");
}
const char *yk_env_home(void)
{
    return getenv("HOME");
}
const char *yk_env_cuda_hold(void)
{
    const char *own = getenv("YOKE_CUDA_HOLD");
    return own ? own : getenv("CUDA_LAUNCH_BLOCKING");
}
const char *yk_env_cuda_mma(void)
{
    return getenv("YOKE_CUDA_MMA");
}
const char *yk_env_isa(void)
{
    return getenv("YOKE_ISA");
}
const char *yk_env_no_color(void)
{
    return getenv("NO_COLOR");
}
