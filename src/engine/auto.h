/* auto.h - which plan an engine runs when none is given: from options, devices and the machine's measurement. */
#ifndef YK_ENGINE_AUTO_H
#define YK_ENGINE_AUTO_H

#include "partition/solve.h"
#include "profiler/profile.h"
#include "src/engine/engine.h"

/* The shape of a model as the engine places it. Closed with yk_shape_close. */
yk_status yk_auto_shape(yk_shape *out, const yk_model *model, yk_error *err);
/* What a plan for this engine (its sizes are set) must keep to; devices are added one by one. */
void yk_auto_limits(yk_plan_limits *limits, const yk_engine *e, const yk_engine_opts *o);
void yk_auto_limit_device(yk_plan_limits *limits, const yk_engine *e, const char *name, uint64_t budget_bytes);

/* Do the options bind the planner? Their wishes, read; YK_ERR_USAGE. */
bool yk_auto_has_wishes(const yk_engine_opts *o);
yk_status yk_auto_wishes(yk_plan_wishes *out, const yk_engine_opts *o, yk_error *err);

/* The plan for options without one. *out NULL: the CPU alone; `why` says it in one line. With device "auto" failures of devices are no failure.
 * *machine: the measurement the plan was made by, closed by the caller; NULL when it is o->machine or when there was nothing to choose. */
yk_status yk_auto_choose(yk_plan **out, yk_machine **machine, const yk_model *model, const yk_engine_opts *o, char *why,
                         size_t capacity, yk_error *err);
/* May device "auto" go on with the CPU after this failure of a device? */
bool yk_auto_may_retreat(const yk_engine_opts *o, yk_status st);

/* What a plan must keep to here: sizes by the options, those of its devices that are here. */
yk_status yk_auto_plan_limits(yk_plan_limits *out, const yk_plan *plan, const yk_model *model, const yk_engine_opts *o,
                              yk_error *err);

/* ---- device_api.c ---- */

/* "null:SETTINGS" (gpu/null/null.c) gives SETTINGS, other names of that backend "compute", all others NULL. */
const char *yk_device_null_options(const char *name);
/* As yk_list_devices, with the null backend when null_options is not NULL. */
yk_status yk_device_list(yk_device_info *out, uint32_t capacity, uint32_t *n, const char *null_options, yk_error *err);
/* Row of the device `name` ("opencl": the first of the backend). YK_ERR_USAGE says why it cannot be used. */
yk_status yk_device_find(const yk_device_info *list, uint32_t n, const char *name, uint32_t *index, yk_error *err);
/* The device is a card that a better backend of the list has as well (OpenCL's name of a usable CUDA device): it is used only when it is named. */
bool yk_device_is_double(const yk_device_info *list, uint32_t n, uint32_t index);

enum { YK_DEVICE_LIST = 32 };

/* ---- machine_api.c ---- */

/* The measurement of this machine with at least the types and devices of `need` (others that the cached file has are measured again with
 * them): from the cache, else made now and kept there. Closed with yk_machine_close. */
yk_status yk_machine_cached(yk_machine **out, const yk_profile_opts *need, yk_error *err);
/* The path of a file WHAT-HASH.json in the user's cache. YK_ERR_RUNTIME: there is no such folder. Make the folders it lies in. */
yk_status yk_cache_file(char *path, size_t capacity, const char *what, uint64_t hash, yk_error *err);
void yk_cache_folders(char *path);
/* Add a text to a hash that begins with YK_CACHE_HASH. */
#define YK_CACHE_HASH 0xcbf29ce484222325u
uint64_t yk_cache_hash(uint64_t hash, const char *text);
/* Types of a model's matrices into need->types. */
void yk_machine_need_types(yk_profile_opts *need, const yk_shape *shape);

#endif
