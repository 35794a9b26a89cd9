/* The C interface of the CPU kernels. Memory is the caller's; nothing is kept between calls.
 *
 * Sequences are [time, batch, ...], contiguous unless strides are given; gates are in the order i, f, g, o. Functions
 * return NULL, or a sentence that says what is wrong with the arguments, and then nothing has been written. */
#ifndef UNROLLED_H
#define UNROLLED_H

#include <stdint.h>

#if defined(_WIN32)
#define UNROLLED_API __declspec(dllexport)
#else
#define UNROLLED_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define UNROLLED_ABI_VERSION 8

/* How to run a call: the name of an instruction set ("baseline", "avx2", "avx512", NULL for the best), and how many
 * threads at most, 1 or more. */
typedef struct {
    const char* instruction_set;
    int64_t threads;
} UnrolledRun;

/* A cotangent [time, batch, width], or NULL for zeros; the last axis is contiguous, strides count floats. */
typedef struct {
    const float* data;
    int64_t time_stride, row_stride;
} UnrolledGradient;

/* What makes a cell other than the plain one, which is all zeros. c is clipped before the output gate sees it. */
typedef struct {
    const float* peephole; /* [3, H]: what i and f take of c before the step, and o of c after it; NULL for none */
    float clip;            /* c is kept within -clip..clip; 0 for no bounds */
    int32_t hard_gates;    /* 1: i, f and o are x / 6 + 1 / 2 within 0..1, and no sigmoid */
    int32_t relu;          /* 1: max(x, 0) in the place of tanh, for g and for c */
    const float* norm;     /* [2, 5, H]: gains and shifts of i, f, g, o and c; NULL for no layer normalisation. With it,
                              the sums are normalised before the peepholes join, and h sees c normalised */
    const uint64_t* keys;  /* [B]: of the rows' random words, in training; NULL: nothing is drawn */
    /* How likely a unit of h and one of c is held: it is then what it was before the step, and o and h have seen the new
     * c. Without keys that share of the old value goes on. */
    float zoneout_h, zoneout_c;
    float dropout; /* how likely c takes in no g, with keys; what it takes in else is multiplied by `scale` */
    float scale;
    uint32_t held_h, held_c, dropped_g; /* the three likelihoods in parts of 2^16 */
    uint32_t first;                     /* the number of the first step, by which masks are drawn */
} UnrolledCell;

typedef struct {
    int64_t steps, rows, hidden;
    const float* pre;       /* [T, B, 4, H]: x W_x + b, or x W_x where there is a `bias` */
    const float* w_h;       /* [H, 4, H] */
    const float* h0;        /* [B, H] */
    const float* c0;        /* [B, H] */
    const uint8_t* resets;  /* [T, B]: 1 where the row starts from zeros before that step; NULL for none */
    const int64_t* lengths; /* [B]: the row is zero from that step on; NULL where all rows are whole */
    float* h;               /* [T, B, H] */
    float* c;               /* [T, B, H], or [B, H] of the last step where keep_c is 0 */
    float* gates;           /* [T, B, 4, H], may be pre; with a norm [T, B, 8, H], behind the gates the sums; or NULL */
    float* scratch;
    int64_t scratch_floats;
    int32_t keep_c;
    int32_t packed; /* 1: scratch is that of an earlier call with the same w_h, hidden and instruction set */
    UnrolledCell cell;
    float* sums; /* [T, B, 4, H], to work in where there is a norm and no gates are stored; may be pre */
    const float* h_mask; /* [B, H]: what h is multiplied by on its way into w_h; NULL for nothing */
    float* h_in;         /* [2, B, H], to work in where there is an h_mask: the first half is h0 times it */
    /* Where h is projected to P numbers in every step, P is its width everywhere, and w_h is [P, 4, H]. */
    int64_t projected;   /* P, or 0 */
    const float* w_hr;   /* [H, P], or NULL */
    float* unprojected;  /* [B, H], to work in where there is a w_hr */
    const float* bias;   /* [4, H]: what pre lacks; NULL for nothing */
} UnrolledForward;

typedef struct {
    int64_t steps, rows, hidden;
    UnrolledGradient grad_h, grad_c, grad_gates; /* widths H, H and 4 H, with a norm 8 H */
    const float* w_h;       /* [H, 4, H] */
    const float* c;         /* [T, B, H] */
    const float* gates;     /* [T, B, 4, H], with a norm [T, B, 8, H] */
    const float* c0;        /* [B, H] */
    const uint8_t* resets;  /* as in UnrolledForward */
    const int64_t* lengths; /* as in UnrolledForward */
    float* grad_pre;        /* [T, B, 4, H]; with a norm, of what it is made of */
    float* grad_h0;         /* [B, H] */
    float* grad_c0;         /* [B, H] */
    float* scratch;
    int64_t scratch_floats;
    UnrolledCell cell;
    float* grad_cell; /* [B, N, H], of each row: with a norm 10 of its gains and shifts, and then with a peephole 3 of
                         that; NULL with neither */
    const float* h_mask; /* as in UnrolledForward */
    int64_t projected;   /* as in UnrolledForward */
    const float* w_hr;
    float* unprojected;
    float* grad_projected; /* [T, B, P]: of what the projection made; NULL without a w_hr */
    float* grad_bias; /* [4, H]: the sum of grad_pre; NULL where there is a norm, or nobody asks */
    float* bias_sums; /* [B, 2, 4, H], to work in where there is a grad_bias */
} UnrolledBackward;

/* out [rows, columns] = bias + x [rows, depth] w [depth, columns]; every sum in the order of depth, from bias on. */
typedef struct {
    int64_t rows, depth, columns;
    const float* x;
    int64_t x_stride; /* floats from row to row */
    const float* w;
    int64_t w_depth_stride, w_column_stride; /* floats; one of them is 1 */
    const float* bias; /* [columns], or NULL */
    float* out;
    float* scratch;
    int64_t scratch_floats;
    int32_t packed; /* 1: scratch is that of an earlier call with the same w, depth, columns and instruction set */
} UnrolledProduct;

/* grad_w [depth, columns] = x^T grad, summed over rows in order, and grad_bias [columns] = the sum of grad. A row of x
 * that is skipped counts as zeros and is not read; its grad is still part of grad_bias. */
typedef struct {
    int64_t rows, depth, columns;
    const float* x;    /* [rows, depth] */
    const float* grad; /* [rows, columns] */
    int64_t x_stride, grad_stride;
    float* grad_w;
    float* grad_bias; /* or NULL */
    float* scratch;
    int64_t scratch_floats;
    const uint8_t* skip; /* [rows]: 1 where the row of x is skipped; NULL for none */
} UnrolledWeightGradient;

/* The random words of every step from `first` on, counted modulo 2^32, of every key and unit: what masks are made of. */
typedef struct {
    int64_t first, steps, rows, units;
    const uint64_t* keys; /* [rows] */
    uint32_t* words;      /* [2, steps, rows, units] */
} UnrolledRandomWords;

/* What something that is dropped out is multiplied by: 0 where the first number of a place is below the threshold of
 * 2^16, else `scale`. Places as in UnrolledRandomWords. */
typedef struct {
    int64_t first, steps, rows, units;
    const uint64_t* keys; /* [rows] */
    uint32_t threshold;
    float scale;
    float* multiplier; /* [steps, rows, units] */
} UnrolledMultiplier;

UNROLLED_API int32_t unrolled_abi_version(void);

/* torch_parallel_for of the torch in this process, or NULL for one thread. */
UNROLLED_API void unrolled_use_parallel_for(void* function);

/* `projected` as in UnrolledForward. */
UNROLLED_API int64_t unrolled_forward_scratch(int64_t hidden, int64_t projected);
UNROLLED_API int64_t unrolled_backward_scratch(int64_t hidden, int64_t projected);
UNROLLED_API int64_t unrolled_product_scratch(int64_t depth, int64_t columns);
UNROLLED_API int64_t unrolled_weight_gradient_scratch(int64_t threads);

UNROLLED_API const char* unrolled_forward(const UnrolledRun* run, const UnrolledForward* call);
UNROLLED_API const char* unrolled_backward(const UnrolledRun* run, const UnrolledBackward* call);
UNROLLED_API const char* unrolled_product(const UnrolledRun* run, const UnrolledProduct* call);
UNROLLED_API const char* unrolled_weight_gradient(const UnrolledRun* run, const UnrolledWeightGradient* call);
UNROLLED_API const char* unrolled_random_words(const UnrolledRun* run, const UnrolledRandomWords* call);
UNROLLED_API const char* unrolled_multiplier(const UnrolledRun* run, const UnrolledMultiplier* call);

/* The keys [rows] of the rows from `first` on. */
UNROLLED_API const char* unrolled_row_keys(uint64_t seed, int64_t first, int64_t rows, uint64_t* keys);

/* The cells' own functions, of `count` floats: what tests of their accuracy call. y may be x. */
UNROLLED_API const char* unrolled_sigmoid(const char* instruction_set, const float* x, float* y, int64_t count);
UNROLLED_API const char* unrolled_tanh(const char* instruction_set, const float* x, float* y, int64_t count);

/* Asks for pages of 2 MiB where the system has them: a fresh buffer of 32 MiB then costs 2 ms instead of 11. */
UNROLLED_API void unrolled_advise_large_pages(void* memory, int64_t bytes);

#ifdef __cplusplus
}
#endif

#endif
