/* compile_check.cu - nvcc accepts the kernel texts (compiled only, never run: no GPU is needed). */
#include "gpu/kernels/dialect.k.h"
#include "gpu/kernels/norm.k.h"
#include "gpu/kernels/attention.k.h"
#include "gpu/kernels/route.k.h"
#include "gpu/kernels/tile.k.h"
#include "gpu/kernels/matvec.k.h"
#include "gpu/kernels/embed.k.h"
