/* CRC32C, eight bytes per step with eight tables (M. Kounavis and F. Berry, "A systematic approach
 * to building high performance, software-based, CRC generators", 2005). Plain C on purpose: at
 * 1-2 GB/s it takes microseconds of a picture. The tables come from lichen/crc32c.py, their home. */
#include "lichen.h"

LICHEN_API uint32_t lichen_crc32c(const uint8_t *data, int64_t size, const uint32_t table[8][256]) {
    uint32_t crc = 0xFFFFFFFF;
    for (; size >= 8; size -= 8, data += 8) {
        crc = table[7][(crc ^ data[0]) & 0xFF] ^ table[6][(crc >> 8 ^ data[1]) & 0xFF] ^
              table[5][(crc >> 16 ^ data[2]) & 0xFF] ^ table[4][crc >> 24 ^ data[3]] ^
              table[3][data[4]] ^ table[2][data[5]] ^ table[1][data[6]] ^ table[0][data[7]];
    }
    for (; size > 0; size--, data++) crc = crc >> 8 ^ table[0][(crc ^ *data) & 0xFF];
    return crc ^ 0xFFFFFFFF;
}
