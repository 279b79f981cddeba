/* shape.h - shape files: what a model looks like, without its weights (the struct: src/model/shape.h). */
#ifndef YK_PARTITION_SHAPE_H
#define YK_PARTITION_SHAPE_H

#include "src/model/shape.h"
#include "yoke/yoke.h"

enum { YK_SHAPE_FORMAT = 1 };

/* Read a shape file (partition/shapes) and give its matrices the types of a mix, as `yoke synth` would. type: name of a mix,
 * NULL for the file's own. opts may be NULL. YK_ERR_INPUT with the key ("shape.n_embd: ..."); YK_ERR_USAGE: unknown type. *out
 * is closed with yk_shape_close, and empty on failure. */
yk_status yk_shape_read(yk_shape *out, const char *text, size_t n_bytes, const char *type, const yk_shape_opts *opts,
                        yk_error *err);

#endif
