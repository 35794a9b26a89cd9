/* The C interface of the step: a whole stack of layers and its projection, one time step a call or several.
 *
 * Weights are packed once, into memory of the caller's that must not move afterwards; large pages suit it. A step
 * allocates nothing, and with one thread it neither waits nor wakes anybody. Errors as in unrolled.h: NULL, or a
 * sentence and nothing written. */
#ifndef UNROLLED_STEP_H
#define UNROLLED_STEP_H

#include "unrolled.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What weights are kept as; sums are float32 for the first two.
 * float32: the bits of unrolled_product followed by unrolled_forward, for any number of rows or threads.
 * bfloat16: weights rounded to the nearest, ties to even; then as float32.
 * int8: weights and inputs as whole numbers from -127 to 127 with exact sums. Scales: for the weights, the largest
 * magnitude / 127 of each column of w_x, of w_h and of the projection; for x, that of each row; for h, 1 / 127 (states
 * beyond 1 count as 1). A NaN or an infinity in a row of x or h makes all of that row NaN. */
enum UnrolledWeights { UNROLLED_FLOAT32 = 0, UNROLLED_BFLOAT16 = 1, UNROLLED_INT8 = 2 };

typedef struct {
    int64_t layers, rows, input, hidden, output;
    int32_t weights;
    const void* const* packed;     /* [layers], from unrolled_step_pack_layer */
    const void* packed_projection; /* from unrolled_step_pack_projection, or NULL for none */
    const float* x;                /* [rows, input], or NULL where input is 0 */
    const int64_t* ids;            /* [rows], or NULL; then the first layer starts from rows of table, and input is 0 */
    const float* table;            /* [vocabulary, 4, hidden]: the input's share with the bias, or NULL */
    int64_t vocabulary;
    const float* h_before; /* [layers, rows, hidden] */
    float* h_after;        /* [layers, rows, hidden], apart from h_before */
    float* c;              /* [layers, rows, hidden]: before the call and, in place, after it */
    float* out;            /* [rows, output], may be x where it is as wide; without a projection [rows, hidden], the
                              top layer's h, or NULL */
    void* scratch;
    int64_t scratch_bytes;
    const UnrolledCell* cells; /* [layers], or NULL where all are plain */
    float* sums; /* [rows, 4 x hidden rounded up to 16], to work in where a cell has a norm; NULL where none has */
} UnrolledStep;

/* Bytes of `packed`; -1 for sizes that cannot be packed. The first layer takes input 0 where ids come in. */
UNROLLED_API int64_t unrolled_step_layer_bytes(int32_t weights, int64_t input, int64_t hidden);
UNROLLED_API int64_t unrolled_step_projection_bytes(int32_t weights, int64_t hidden, int64_t output);

/* w_x [input, 4, hidden] (NULL where input is 0), w_h [hidden, 4, hidden], bias [4, hidden] or NULL for zeros. */
UNROLLED_API const char* unrolled_step_pack_layer(const UnrolledRun* run, int32_t weights, int64_t input,
                                                  int64_t hidden, const float* w_x, const float* w_h,
                                                  const float* bias, void* packed);

/* weight [output, hidden], bias [output] or NULL for zeros. */
UNROLLED_API const char* unrolled_step_pack_projection(const UnrolledRun* run, int32_t weights, int64_t hidden,
                                                       int64_t output, const float* weight, const float* bias,
                                                       void* packed);

/* Bytes of `scratch` for steps with at most so many threads and rows; -1 for sizes that cannot be run. */
UNROLLED_API int64_t unrolled_step_scratch_bytes(int32_t weights, int64_t rows, int64_t input, int64_t hidden,
                                                 int64_t threads);

/* `run` names the instruction set that the weights were packed for. An id outside the table is refused. */
UNROLLED_API const char* unrolled_step(const UnrolledRun* run, const UnrolledStep* step);

/* As so many calls of unrolled_step, each from where the one before ended, with their bits; x is [rows, steps, input],
 * ids [rows, steps], out [rows, steps, output], or [rows, steps, hidden] where there is no projection. With no steps
 * nothing is written. */
UNROLLED_API int64_t unrolled_steps_scratch_bytes(int32_t weights, int64_t rows, int64_t input, int64_t hidden,
                                                  int64_t threads);
UNROLLED_API const char* unrolled_steps(const UnrolledRun* run, const UnrolledStep* step, int64_t steps);

#ifdef __cplusplus
}
#endif

#endif
