/* libFuzzer target for rans.c and crc32c.c, with AddressSanitizer and UndefinedBehaviorSanitizer.
 *
 *   byte 0   what to do: bits 0-1: 0 decode, 1 encode and decode, 2 decode in two pieces, 3 CRC;
 *            bit 2: table numbers of 16 bits; bits 3-5: lanes - 1; bit 6: table numbers may be wrong
 *   byte 1   precision 12..16 and number of tables 1..16
 *   then     per table: length and offset; per entry: a weight; what is left is stream and symbols
 *
 * The tables are valid, as those of a checked model file are; all else is what a stranger wrote.
 * Checked beyond the sanitizers: what is encoded decodes to itself; a decoding in two pieces equals
 * one in one piece; the CRC equals the bitwise one.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lichen.h"

/* The structures of rans.c, as lichen/entropy/native.py mirrors them. */
typedef struct {
    uint32_t multiplier, limit;
    uint16_t start, complement;
    uint8_t shift, increment;
    uint16_t unused;
} encoder_entry;
typedef struct {
    uint16_t start, frequency;
} decoder_entry;
typedef struct {
    int32_t base;
    int16_t offset;
    uint16_t escape;
} table_row;
typedef struct {
    int32_t precision, count;
    const table_row *rows;
    const encoder_entry *encoder;
    const decoder_entry *decoder;
    const uint16_t *buckets;
} rans_tables;

int64_t lichen_rans_encode(const rans_tables *, const int16_t *, const void *, int32_t, int64_t,
                           int32_t, uint8_t *, int64_t);
int64_t lichen_rans_decode(const rans_tables *, const uint8_t *, int64_t, int64_t, uint32_t *,
                           int32_t, int32_t, const void *, int32_t, int64_t, int16_t *);
uint32_t lichen_crc32c(const uint8_t *, int64_t, const uint32_t[8][256]);

enum { BUCKETS = 512, LENGTH_MAX = 96, TABLES_MAX = 16, ROOM = -16 };

static void fail(const char *what) {
    fprintf(stderr, "wrong result: %s\n", what);
    abort();
}

static uint8_t take(const uint8_t **data, size_t *size) {
    if (*size == 0) return 0;
    --*size;
    return *(*data)++;
}

/* docs/stream.md, 3.5. */
static void reciprocal(uint32_t f, int precision, encoder_entry *e) {
    int l = 0;
    while ((UINT32_C(1) << l) < f) l++;
    const int shift = 31 + l;
    const unsigned __int128 one = (unsigned __int128)1 << shift;
    const uint64_t up = (uint64_t)((one + f - 1) / f);
    const unsigned __int128 excess = (unsigned __int128)up * f - one;
    const uint64_t most = ((uint64_t)f << (32 - precision)) - 1;
    e->shift = (uint8_t)shift;
    e->increment = !(excess * most < one);
    e->multiplier = (uint32_t)(e->increment ? (uint64_t)(one / f) : up);
}

typedef struct {
    rans_tables t;
    table_row *rows;
    encoder_entry *encoder;
    decoder_entry *decoder;
    uint16_t *buckets;
    int entries;
} made_tables;

static made_tables make_tables(const uint8_t **data, size_t *size) {
    made_tables m = {0};
    const uint8_t first = take(data, size);
    const int precision = 12 + first % 5, count = 1 + first / 5 % TABLES_MAX;
    const uint32_t total = UINT32_C(1) << precision;
    m.rows = calloc((size_t)count, sizeof *m.rows);
    m.encoder = calloc((size_t)count * LENGTH_MAX, sizeof *m.encoder);
    m.decoder = calloc((size_t)count * LENGTH_MAX, sizeof *m.decoder);
    m.buckets = malloc((size_t)count * BUCKETS * sizeof *m.buckets);
    for (int t = 0; t < count; t++) {
        const uint8_t shape = take(data, size);
        const int length = 2 + shape % (LENGTH_MAX - 1);
        const int offset = (int8_t)take(data, size) * 256 + (shape >= 190 ? 0 : 77);
        uint32_t weights[LENGTH_MAX], sum = 0, used = 0;
        for (int i = 0; i < length; i++) sum += weights[i] = 1 + take(data, size) * (i % 3 == 0);
        for (int i = 0; i < length; i++) {
            uint32_t f = 1 + (uint32_t)((uint64_t)weights[i] * (total - (uint32_t)length) / sum);
            if (i == length - 1) f = total - used; /* 1 or more: the others' floors fall short */
            encoder_entry *e = &m.encoder[m.entries];
            reciprocal(f, precision, e);
            e->limit = f << (32 - precision);
            e->start = (uint16_t)used;
            e->complement = (uint16_t)(total - f);
            m.decoder[m.entries] = (decoder_entry){(uint16_t)used, (uint16_t)f};
            used += f;
            m.entries++;
        }
        m.rows[t] = (table_row){m.entries - length, (int16_t)(offset > 32000 ? 32000 : offset),
                                (uint16_t)(length - 1)};
        for (uint32_t b = 0; b < BUCKETS; b++) {
            const uint32_t edge = b << (precision - 9);
            int entry = 0;
            while (entry + 1 < length && m.decoder[m.rows[t].base + entry + 1].start <= edge)
                entry++;
            m.buckets[t * BUCKETS + (int)b] = (uint16_t)entry;
        }
    }
    /* Exact sizes, so that a read past the last entry is seen. */
    m.encoder = realloc(m.encoder, (size_t)m.entries * sizeof *m.encoder);
    m.decoder = realloc(m.decoder, (size_t)m.entries * sizeof *m.decoder);
    m.t = (rans_tables){precision, count, m.rows, m.encoder, m.decoder, m.buckets};
    return m;
}

static void free_tables(made_tables *m) {
    free(m->rows);
    free(m->encoder);
    free(m->decoder);
    free(m->buckets);
}

static uint8_t *exactly(const void *from, size_t size) {
    uint8_t *copy = malloc(size ? size : 1);
    if (size) memcpy(copy, from, size);
    return copy;
}

/* n table numbers: below count, or any. */
static void *make_indices(const uint8_t *data, size_t size, int64_t n, int wide, int any,
                          int count) {
    uint8_t *indices = malloc((size_t)n << wide);
    for (int64_t i = 0; i < n; i++) {
        const uint8_t byte = size ? data[(size_t)i % size] : 0;
        const uint32_t index = any ? byte : byte % (uint32_t)count;
        if (wide) ((uint16_t *)(void *)indices)[i] = (uint16_t)(any ? index * 257 : index);
        else indices[i] = (uint8_t)index;
    }
    return indices;
}

static void check_crc(const uint8_t *data, size_t size) {
    static uint32_t table[8][256];
    if (table[0][1] == 0) {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t x = i;
            for (int k = 0; k < 8; k++) x = x >> 1 ^ (x & 1 ? 0x82F63B78 : 0);
            table[0][i] = x;
        }
        for (int k = 1; k < 8; k++)
            for (int i = 0; i < 256; i++)
                table[k][i] = table[k - 1][i] >> 8 ^ table[0][table[k - 1][i] & 0xFF];
    }
    uint32_t expected = 0xFFFFFFFF;
    for (size_t i = 0; i < size; i++) {
        expected ^= data[i];
        for (int k = 0; k < 8; k++) expected = expected >> 1 ^ (expected & 1 ? 0x82F63B78 : 0);
    }
    if (lichen_crc32c(data, (int64_t)size, (const uint32_t(*)[256])table) != ~expected) fail("CRC");
}

static void round_trip(const made_tables *m, const uint8_t *data, size_t size, int wide, int any,
                       int lanes) {
    const int64_t n = (int64_t)(size / 2);
    if (n < 1) return;
    int16_t *symbols = (int16_t *)(void *)exactly(data, (size_t)n * 2);
    void *indices = make_indices(data, size, n, wide, any, m->t.count);
    for (int64_t i = 0; i < n; i++) { /* half of them inside their table */
        const uint32_t index =
            wide ? ((uint16_t *)indices)[i] : ((uint8_t *)indices)[i];
        if (i % 2 || index >= (uint32_t)m->t.count) continue;
        const table_row row = m->rows[index];
        symbols[i] = (int16_t)(row.offset + (uint16_t)symbols[i] % row.escape);
    }
    int64_t first = ROOM, capacity = 0;
    uint8_t *buffer = NULL;
    const int64_t words[] = {n / 2, n + 3, 7 * n};
    for (int k = 0; k < 3 && first == ROOM; k++) {
        free(buffer);
        capacity = 4 * lanes + 2 * words[k];
        buffer = malloc((size_t)capacity);
        first = lichen_rans_encode(&m->t, symbols, indices, wide, n, lanes, buffer, capacity);
    }
    if (first == ROOM) fail("no room, although there is the most that symbols take");
    if (first >= 0) {
        uint8_t *stream = exactly(buffer + first, (size_t)(capacity - first));
        uint32_t states[8];
        for (int k = 0; k < lanes; k++) memcpy(&states[k], stream + 4 * k, 4);
        int16_t *found = malloc((size_t)n * 2);
        const int64_t end = lichen_rans_decode(&m->t, stream, capacity - first, 4 * lanes, states,
                                               lanes, 0, indices, wide, n, found);
        if (end != capacity - first) fail("not all words are read");
        if (memcmp(found, symbols, (size_t)n * 2) != 0) fail("other symbols");
        for (int k = 0; k < lanes; k++)
            if (states[k] != 1 << 16) fail("final state");
        free(found);
        free(stream);
    }
    free(buffer);
    free(indices);
    free(symbols);
}

static void decode_any(const made_tables *m, const uint8_t *data, size_t size, int wide, int any,
                       int lanes, int pieces) {
    if (size < (size_t)(4 * lanes + 2)) return;
    const int64_t n = 1 + data[0] + 256 * (data[1] % 8);
    uint8_t *stream = exactly(data + 2, size - 2);
    const int64_t length = (int64_t)size - 2;
    void *indices = make_indices(data, size, n, wide, any, m->t.count);
    uint32_t states[8], again[8];
    for (int k = 0; k < lanes; k++) {
        memcpy(&states[k], stream + 4 * k, 4);
        states[k] |= 1 << 16; /* Python refuses smaller ones before it calls */
    }
    memcpy(again, states, sizeof again);
    int16_t *symbols = malloc((size_t)n * 2);
    const int64_t end = lichen_rans_decode(&m->t, stream, length, 4 * lanes, states, lanes, 0,
                                           indices, wide, n, symbols);
    if (end > length) fail("read beyond the stream");
    if (pieces && end >= 0) {
        const int64_t cut = n / 3;
        int16_t *found = malloc((size_t)n * 2);
        int64_t at = lichen_rans_decode(&m->t, stream, length, 4 * lanes, again, lanes, 0, indices,
                                        wide, cut, found);
        at = lichen_rans_decode(&m->t, stream, length, at, again, lanes, (int32_t)(cut % lanes),
                                (uint8_t *)indices + (cut << wide), wide, n - cut, found + cut);
        if (at != end || memcmp(found, symbols, (size_t)n * 2) != 0) fail("pieces differ");
        free(found);
    }
    free(symbols);
    free(indices);
    free(stream);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t what = take(&data, &size);
    if ((what & 3) == 3) {
        check_crc(data, size);
        return 0;
    }
    const int wide = what >> 2 & 1, lanes = 1 + (what >> 3 & 7), any = what >> 6 & 1;
    made_tables m = make_tables(&data, &size);
    if ((what & 3) == 1) round_trip(&m, data, size, wide, any, lanes);
    else decode_any(&m, data, size, wide, any, lanes, (what & 3) == 2);
    free_tables(&m);
    return 0;
}
