/* crc32c.h - the Castagnoli CRC (RFC 3720, as in ext4 and iSCSI): x86-64 has an instruction for it, and it needs no library. */
#ifndef YK_BASE_CRC32C_H
#define YK_BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* CRC of n more bytes behind those that gave `crc`; 0 to begin with. */
uint32_t yk_crc32c(uint32_t crc, const void *p, size_t n);
/* The same in plain C, whatever the CPU. */
uint32_t yk_crc32c_plain(uint32_t crc, const void *p, size_t n);
/* For long blocks: the CRC of the four CRCs (little endian) of the block's quarters. The first three have n / 32 * 8 bytes each. The
 * instruction has a latency of three cycles, so four at a time go three times as fast as one; where the CPU multiplies without carries in 512 bits, that is two to
 * four times as fast again. */
uint32_t yk_crc32c_block(const void *p, size_t n);

#endif
