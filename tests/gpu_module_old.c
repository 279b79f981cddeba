/* A module of another device ABI, for the loader's test. */
#include <stdint.h>

__attribute__((visibility("default"))) int yk_module_open(uint32_t abi, const void *host, uint32_t *out);

int yk_module_open(uint32_t abi, const void *host, uint32_t *out)
{
    (void)host;
    out[0] = abi + 41;
    out[1] = 12;
    return -2;
}
