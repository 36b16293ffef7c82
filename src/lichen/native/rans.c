/* rANS in C: the twin of entropy/rans.py, which defines it. Equal to the last byte, both ways.
 *
 * Encoder: one 16-byte entry per symbol, division by reciprocal multiplication (rans.py,
 * `reciprocal`). Decoder: the top bits of the slot name a bucket, the bucket names the first symbol
 * whose interval reaches into it, and a short scan goes on from there.
 *
 * The tables come from a validated Tables object: every table's frequencies are 1 or more and sum
 * to 2**precision, so the scan ends inside its table. The stream is trusted in nothing.
 */
#include "lichen.h"

#if defined(__GNUC__) || defined(__clang__)
#define INLINE static inline __attribute__((always_inline))
#define COLD static __attribute__((noinline, cold))
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#else
#define INLINE static inline
#define COLD static
#define UNLIKELY(x) (x)
#endif

enum {
    LOWER = 1 << 16,
    MAX_LANES = 8,
    GROUP_BITS = 4,
    MAX_GROUPS = 6,
    MAX_STEPS = 1 + MAX_GROUPS, /* one symbol takes at most as many words */
    BUCKET_BITS = 9,
    /* Codes of this file, apart from those of lichen.h; entropy/native.py knows them. */
    ERROR_ROOM = -16,   /* encoder: the buffer is too small */
    ERROR_INDEX = -17,  /* a table index without a table */
    ERROR_SHORT = -18,  /* decoder: the words end too early */
    ERROR_ESCAPE = -19, /* decoder: an escape that no encoder writes */
};

typedef struct {
    uint32_t multiplier;
    uint32_t limit; /* frequency << (32 - precision) */
    uint16_t start;
    uint16_t complement; /* 2**precision - frequency */
    uint8_t shift;
    uint8_t increment;
    uint16_t unused;
} encoder_entry;

typedef struct {
    uint16_t start;
    uint16_t frequency;
} decoder_entry;

typedef struct {
    int32_t base;   /* first entry */
    int16_t offset; /* first symbol */
    uint16_t escape; /* entry of the escape: length - 1 */
} table_row;

/* Field for field lichen.entropy.native._TablesStruct. */
typedef struct {
    int32_t precision;
    int32_t count;
    const table_row *rows;
    const encoder_entry *encoder;
    const decoder_entry *decoder;
    const uint16_t *buckets; /* [count][1 << BUCKET_BITS]: entry, relative to its table's base */
} rans_tables;

INLINE void store16(uint8_t *p, uint32_t word) {
    p[0] = (uint8_t)word;
    p[1] = (uint8_t)(word >> 8);
}

INLINE uint32_t load16(const uint8_t *p) { return p[0] | (uint32_t)p[1] << 8; }

INLINE uint32_t index_at(const void *indices, int wide, int64_t i) {
    return wide ? ((const uint16_t *)indices)[i] : ((const uint8_t *)indices)[i];
}

/* Write a word below *p if the state is at the limit; always touches the two bytes there. */
INLINE uint32_t renormalise(uint32_t x, uint32_t limit, uint8_t **p) {
    const int full = x >= limit;
    store16(*p - 2, x);
    *p -= full ? 2 : 0;
    return full ? x >> 16 : x;
}

INLINE uint32_t push(uint32_t x, const encoder_entry *e, uint8_t **p) {
    x = renormalise(x, e->limit, p);
    const uint32_t q = (uint32_t)(((uint64_t)x + e->increment) * e->multiplier >> e->shift);
    return x + q * e->complement + e->start;
}

/* Push the groups of an escaped symbol, last one first. */
COLD uint32_t push_groups(uint32_t x, int32_t entry, int32_t escape, int precision, uint8_t **p) {
    const int bits = precision - GROUP_BITS;
    const uint32_t value =
        entry < 0 ? 2u * (uint32_t)(-1 - entry) + 1u : 2u * (uint32_t)(entry - escape);
    int group = MAX_GROUPS - 1;
    while (group > 0 && value >> (3 * group) == 0) group--;
    for (uint32_t more = 0; group >= 0; group--, more = 8) {
        const uint32_t digit = (value >> (3 * group) & 7) | more;
        x = renormalise(x, (uint32_t)1 << (32 - GROUP_BITS), p);
        x = (x >> bits << precision) + (digit << bits) + (x & (((uint32_t)1 << bits) - 1));
    }
    return x;
}

/* Encode one symbol into *state, downwards from *p. `left` symbols come after it: room is kept for
 * a word for each, so that only escapes need look. Returns 0 or an error. */
INLINE int encode_one(const rans_tables *t, int32_t symbol, uint32_t table, int64_t left,
                      uint32_t *state, const uint8_t *bottom, uint8_t **p) {
    if (UNLIKELY(table >= (uint32_t)t->count)) return ERROR_INDEX;
    const table_row row = t->rows[table];
    int32_t entry = symbol - row.offset;
    if (UNLIKELY((uint32_t)entry >= row.escape)) {
        if ((*p - bottom) / 2 < left + MAX_STEPS) return ERROR_ROOM;
        uint8_t *copy = *p; /* so that the address of p itself stays out of memory */
        *state = push_groups(*state, entry, row.escape, t->precision, &copy);
        *p = copy;
        entry = row.escape;
    }
    *state = push(*state, t->encoder + row.base + entry, p);
    return 0;
}

INLINE int64_t encode(const rans_tables *t, const int16_t *symbols, const void *indices, int wide,
                      int64_t n, const int lanes, uint8_t *buffer, int64_t capacity) {
    if ((capacity - 4 * lanes) / 2 < n) return ERROR_ROOM;
    uint32_t x[MAX_LANES];
    uint8_t *p = buffer + capacity;
    const uint8_t *bottom = buffer + 4 * lanes; /* words end here, the states are below */
    for (int k = 0; k < lanes; k++) x[k] = LOWER;
    int64_t i = n;
    int error = 0;
    while (i % lanes && !error) {
        i--;
        error = encode_one(t, symbols[i], index_at(indices, wide, i), i, &x[i % lanes], bottom, &p);
    }
    while (i > 0 && !error) {
        for (int k = lanes - 1; k >= 0 && !error; k--) {
            i--;
            error = encode_one(t, symbols[i], index_at(indices, wide, i), i, &x[k], bottom, &p);
        }
    }
    if (error) return error;
    for (int k = lanes - 1; k >= 0; k--) {
        p -= 4;
        store16(p, x[k]);
        store16(p + 2, x[k] >> 16);
    }
    return p - buffer;
}

/* Encode n symbols into the end of buffer; returns the position of the first byte, or an error. */
LICHEN_API int64_t lichen_rans_encode(const rans_tables *t, const int16_t *symbols,
                                      const void *indices, int32_t wide, int64_t n, int32_t lanes,
                                      uint8_t *buffer, int64_t capacity) {
    if (n < 1 || lanes < 1 || lanes > MAX_LANES || capacity < 0) return LICHEN_ERROR_ARGUMENT;
    if (lanes == 4 && !wide) return encode(t, symbols, indices, 0, n, 4, buffer, capacity);
    return encode(t, symbols, indices, wide, n, lanes, buffer, capacity);
}

/* Take a word if the state needs one. Returns 0 where there is none (no state is 0). */
INLINE uint32_t refill(uint32_t x, const uint8_t **p, const uint8_t *end) {
    if (x >= LOWER) return x;
    if (UNLIKELY(end - *p < 2)) return 0;
    x = x << 16 | load16(*p);
    *p += 2;
    return x;
}

/* Decode the groups of an escaped symbol. Returns 0 or an error. */
COLD int pop_groups(uint32_t *state, const table_row *row, int precision, const uint8_t **p,
                    const uint8_t *end, int32_t *symbol) {
    const int bits = precision - GROUP_BITS;
    uint32_t value = 0, x = *state;
    for (int number = 0; number < MAX_GROUPS; number++) {
        const uint32_t slot = x & (((uint32_t)1 << precision) - 1);
        const uint32_t digit = slot >> bits;
        x = refill((x >> precision << bits) + (slot & (((uint32_t)1 << bits) - 1)), p, end);
        if (!x) return ERROR_SHORT;
        value |= (digit & 7) << (3 * number);
        if (digit >= 8) continue;
        if (number && !digit) return ERROR_ESCAPE;
        const int32_t distance = (int32_t)(value >> 1);
        *symbol = value & 1 ? row->offset - 1 - distance : row->offset + row->escape + distance;
        *state = x;
        return *symbol < INT16_MIN || *symbol > INT16_MAX ? ERROR_ESCAPE : 0;
    }
    return ERROR_ESCAPE;
}

/* Decode one symbol from *state. Returns 0 or an error. */
INLINE int decode_one(const rans_tables *t, uint32_t table, uint32_t *state, const uint8_t **p,
                      const uint8_t *end, int16_t *out) {
    if (UNLIKELY(table >= (uint32_t)t->count)) return ERROR_INDEX;
    const table_row row = t->rows[table];
    const uint32_t slot = *state & (((uint32_t)1 << t->precision) - 1);
    const uint16_t *bucket = t->buckets + ((size_t)table << BUCKET_BITS);
    int32_t entry = bucket[slot >> (t->precision - BUCKET_BITS)];
    const decoder_entry *e = t->decoder + row.base + entry;
    /* start <= slot holds for the bucket's first entry and stays true; the last entry ends the
     * scan, for it reaches up to 2**precision. */
    for (; slot - e->start >= e->frequency; e++) entry++;
    *state = refill((*state >> t->precision) * e->frequency + slot - e->start, p, end);
    if (UNLIKELY(!*state)) return ERROR_SHORT;
    int32_t symbol = row.offset + entry;
    if (UNLIKELY(entry == row.escape)) {
        uint32_t x = *state; /* copies, so that the originals' addresses stay out of memory */
        const uint8_t *position = *p;
        const int error = pop_groups(&x, &row, t->precision, &position, end, &symbol);
        if (error) return error;
        *state = x;
        *p = position;
    }
    *out = (int16_t)symbol;
    return 0;
}

INLINE int64_t decode(const rans_tables *t, const uint8_t *data, int64_t size, int64_t position,
                      uint32_t *states, const int lanes, int phase, const void *indices, int wide,
                      int64_t n, int16_t *symbols) {
    uint32_t x[MAX_LANES];
    const uint8_t *p = data + position, *end = data + size;
    for (int k = 0; k < lanes; k++) x[k] = states[k];
    int64_t i = 0;
    int error = 0;
    for (int k = phase; k && i < n && !error; k = (k + 1) % lanes, i++)
        error = decode_one(t, index_at(indices, wide, i), &x[k], &p, end, symbols + i);
    while (n - i >= lanes && !error) {
        for (int k = 0; k < lanes && !error; k++, i++)
            error = decode_one(t, index_at(indices, wide, i), &x[k], &p, end, symbols + i);
    }
    for (int k = 0; i < n && !error; k++, i++)
        error = decode_one(t, index_at(indices, wide, i), &x[k], &p, end, symbols + i);
    if (error) return error;
    for (int k = 0; k < lanes; k++) states[k] = x[k];
    return p - data;
}

/* Decode n symbols from data[position:size]. states, each 2**16 or more, and phase, the lane of
 * the first symbol, carry on from the call before. Returns the new position, or an error. */
LICHEN_API int64_t lichen_rans_decode(const rans_tables *t, const uint8_t *data, int64_t size,
                                      int64_t position, uint32_t *states, int32_t lanes,
                                      int32_t phase, const void *indices, int32_t wide, int64_t n,
                                      int16_t *symbols) {
    if (n < 0 || lanes < 1 || lanes > MAX_LANES || phase < 0 || phase >= lanes || position < 0 ||
        position > size)
        return LICHEN_ERROR_ARGUMENT;
    if (lanes == 4 && !wide)
        return decode(t, data, size, position, states, 4, phase, indices, 0, n, symbols);
    return decode(t, data, size, position, states, lanes, phase, indices, wide, n, symbols);
}
