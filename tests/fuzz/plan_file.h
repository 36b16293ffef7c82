/* Read and run plan files (plan_file.py describes them): every array in an allocation of exactly
 * its size, so that AddressSanitizer sees the first byte beyond it. */
#ifndef LICHEN_PLAN_FILE_H
#define LICHEN_PLAN_FILE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan.h"

typedef struct lichen_pool lichen_pool;
lichen_pool *lichen_pool_new(int64_t threads);
void lichen_pool_free(lichen_pool *pool);
int64_t lichen_run_plan(int64_t isa, lichen_pool *pool, const lichen_run *run,
                        const int32_t *steps, int64_t count, int64_t scratch_bytes);
const char *lichen_isa_name(int64_t index);
int64_t lichen_isa_supported(int64_t index);
int64_t lichen_isa_bytes(int64_t index);

enum { PLAN_HEAD = 11, PLAN_EXTERNAL = 7, PLAN_TENSOR = 11, PLAN_OP = 23, PLAN_ARRAYS = 4 };
_Static_assert(sizeof(lichen_tensor) == 8 * PLAN_TENSOR, "fields of lichen_tensor");
_Static_assert(sizeof(lichen_op) == 8 * (PLAN_OP + PLAN_ARRAYS), "fields of lichen_op");
#define PLAN_MAGIC INT64_C(0x4E414C504E48434C)

typedef struct {
    int64_t channels, height, width, bytes, low, high, last;
} plan_array;

typedef struct {
    int64_t form, tensor_count, op_count, input_count, output_count, vector_count, step_count,
        fill_count, arena_bytes, scratch_bytes;
    plan_array *arrays; /* inputs, then outputs */
    int64_t *vector_sizes, *fills;
    lichen_tensor *tensors;
    lichen_op *ops;
    int32_t *steps;
    uint8_t **given; /* inputs and vectors, as the file has them */
    uint8_t **expected;
} plan_file;

static void plan_fail(const char *what) {
    fprintf(stderr, "plan file: %s\n", what);
    abort();
}

static void *plan_allocate(int64_t size) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, (size_t)(size > 0 ? size : 1)) != 0) plan_fail("no memory");
    return memory;
}

static void *plan_copy(const void *from, int64_t size) {
    void *memory = plan_allocate(size);
    memcpy(memory, from, (size_t)size);
    return memory;
}

static int64_t plan_array_bytes(const plan_array *a) {
    return a->channels * a->height * a->width * a->bytes;
}

static plan_file *plan_read(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) return NULL;
    fseek(file, 0, SEEK_END);
    const long size = ftell(file);
    rewind(file);
    uint8_t *data = plan_allocate(size);
    if (fread(data, 1, (size_t)size, file) != (size_t)size) plan_fail("cannot be read");
    fclose(file);
    const int64_t *at = (const int64_t *)(const void *)data;
    if (at[0] != PLAN_MAGIC) plan_fail("is none");
    plan_file *p = calloc(1, sizeof *p);
    memcpy(&p->form, at + 1, (PLAN_HEAD - 1) * 8);
    at += PLAN_HEAD;
    const int64_t arrays = p->input_count + p->output_count;
    p->arrays = plan_copy(at, arrays * PLAN_EXTERNAL * 8);
    at += arrays * PLAN_EXTERNAL;
    p->vector_sizes = plan_copy(at, p->vector_count * 8);
    at += p->vector_count;
    p->fills = plan_copy(at, p->fill_count * 16);
    at += p->fill_count * 2;
    p->tensors = plan_copy(at, p->tensor_count * PLAN_TENSOR * 8);
    at += p->tensor_count * PLAN_TENSOR;
    const int64_t *ops = at;
    at += p->op_count * (PLAN_OP + 2 * PLAN_ARRAYS);
    p->steps = plan_copy(at, p->step_count * 12);
    at += (p->step_count * 12 + 7) / 8;
    const int64_t blob_bytes = *at++;
    const uint8_t *blob = (const uint8_t *)at;
    at += blob_bytes / 8;
    p->ops = plan_allocate(p->op_count * (int64_t)sizeof(lichen_op));
    for (int64_t i = 0; i < p->op_count; i++, ops += PLAN_OP + 2 * PLAN_ARRAYS) {
        memcpy(&p->ops[i], ops, PLAN_OP * 8);
        const void **pointers = (const void **)((int64_t *)(void *)&p->ops[i] + PLAN_OP);
        for (int64_t k = 0; k < PLAN_ARRAYS; k++) {
            const int64_t offset = ops[PLAN_OP + 2 * k], bytes = ops[PLAN_OP + 2 * k + 1];
            pointers[k] = offset < 0 ? NULL : plan_copy(blob + offset, bytes);
        }
    }
    const int64_t given = p->input_count + p->vector_count;
    p->given = calloc((size_t)given + 1, sizeof *p->given);
    p->expected = calloc((size_t)p->output_count + 1, sizeof *p->expected);
    for (int64_t i = 0; i < given + p->output_count; i++) {
        const int64_t vector = i - p->input_count, output = i - given;
        const int64_t bytes =
            i < p->input_count ? plan_array_bytes(&p->arrays[i])
            : output < 0       ? p->vector_sizes[vector] * 4
                               : plan_array_bytes(&p->arrays[p->input_count + output]);
        uint8_t *copy = plan_copy(at, bytes);
        if (output < 0) p->given[i] = copy;
        else p->expected[output] = copy;
        at += (bytes + 7) / 8;
    }
    if ((const uint8_t *)at != data + size) plan_fail("has another length than its parts");
    free(data);
    return p;
}

/* Run with inputs (C, H, W) and vectors as in p->given; `last`: hand inputs of more than 4 channels
 * over with the channels last. Returns the outputs (C, H, W), each from malloc, or NULL where the
 * run failed; *error is its code. */
static uint8_t **plan_run(const plan_file *p, int64_t isa, lichen_pool *pool,
                          uint8_t *const *given, int last, int64_t *error) {
    const int64_t arrays = p->input_count + p->output_count;
    lichen_external *external = calloc((size_t)arrays, sizeof *external);
    for (int64_t i = 0; i < arrays; i++) {
        const plan_array *a = &p->arrays[i];
        const int64_t bytes = plan_array_bytes(a);
        const int inner = a->last || (last && a->channels > 4);
        external[i].data = plan_allocate(bytes);
        external[i].stride_c = inner ? a->bytes : a->height * a->width * a->bytes;
        external[i].stride_x = inner ? a->channels * a->bytes : a->bytes;
        external[i].stride_y = external[i].stride_x * a->width;
        if (i >= p->input_count) continue;
        for (int64_t c = 0, from = 0; c < a->channels; c++)
            for (int64_t y = 0; y < a->height; y++)
                for (int64_t x = 0; x < a->width; x++, from += a->bytes)
                    memcpy(external[i].data + c * external[i].stride_c + y * external[i].stride_y +
                               x * external[i].stride_x,
                           given[i] + from, (size_t)a->bytes);
    }
    const int32_t **vectors = calloc((size_t)p->vector_count + 1, sizeof *vectors);
    for (int64_t i = 0; i < p->vector_count; i++)
        vectors[i] = (const int32_t *)(void *)given[p->input_count + i];
    uint8_t *arena = plan_allocate(p->arena_bytes);
    memset(arena, 0, (size_t)p->arena_bytes);
    for (int64_t i = 0; i < p->fill_count; i++)
        memset(arena + p->fills[2 * i], 128, (size_t)(p->fills[2 * i + 1] - p->fills[2 * i]));
    const lichen_run run = {p->ops, p->tensors, external, vectors, arena, NULL};
    *error = lichen_run_plan(isa, pool, &run, p->steps, p->step_count, p->scratch_bytes);
    uint8_t **outputs = calloc((size_t)p->output_count + 1, sizeof *outputs);
    for (int64_t i = 0; i < p->output_count; i++) {
        const plan_array *a = &p->arrays[p->input_count + i];
        const lichen_external *e = &external[p->input_count + i];
        outputs[i] = plan_allocate(plan_array_bytes(a));
        for (int64_t c = 0, to = 0; c < a->channels; c++)
            for (int64_t y = 0; y < a->height; y++)
                for (int64_t x = 0; x < a->width; x++, to += a->bytes)
                    memcpy(outputs[i] + to,
                           e->data + c * e->stride_c + y * e->stride_y + x * e->stride_x,
                           (size_t)a->bytes);
    }
    for (int64_t i = 0; i < arrays; i++) free(external[i].data);
    free(external);
    free(vectors);
    free(arena);
    return outputs;
}

static void plan_free_outputs(const plan_file *p, uint8_t **outputs) {
    for (int64_t i = 0; i < p->output_count; i++) free(outputs[i]);
    free(outputs);
}

#endif
