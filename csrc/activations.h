// Sigmoid and tanh of a vector of floats.
//
// Both are quotients with one division and short polynomials; docs/numerics.md says what is guaranteed of them. The
// polynomials are minimax: their relative effect on the result is the smallest that their degree allows on the interval,
// found with the exchange algorithm in 40 digits, the constant term being held at its exact value.
#pragma once

#include "vector.h"

namespace unrolled {
namespace UNROLLED_ISA {

// e^-x = power * over / under, for x from -88.5 to 88; beyond, what it is there. `power` is 0 or infinite at the ends.
struct Decay {
    Vector power, over, under;
};

UNROLLED_INLINE Decay decay(Vector x) {
    // x = r - n ln 2 with n whole and |r| <= ln 2 / 2. A fused product needs no spare bits in the first part of ln 2, and
    // leaves a remainder that is good enough to be squared before the second part comes in.
    constexpr float kLn2 = kFused ? 0.693147182f : 0.693359375f;
    constexpr float kRest = kFused ? -1.90465430e-9f : -2.12194440e-4f;
    x = minimum(broadcast(88.0f), maximum(broadcast(-88.5f), x));
    const Vector shifted = fma(x, broadcast(-1.44269504f), broadcast(kExponentShift));
    const Vector n = shifted - broadcast(kExponentShift);
    const Vector rough = fma(n, broadcast(kLn2), x);
    const Vector r = fma(n, broadcast(kRest), rough);
    const Vector square = kFused ? rough * rough : r * r;
    // e^-r = (c - r) / (c + r) with c = r coth(r / 2), which is even in r; the polynomial's effect is below 2^-30.
    const Vector slope = fma(square, broadcast(-2.76597545e-3f), broadcast(0.166666176f));
    const Vector c = fma(square, slope, broadcast(2.0f));
    return {power_of_two(shifted), c - r, c + r};
}

// 1 / (1 + e^-x)
UNROLLED_INLINE Vector sigmoid(Vector x) {
    const Decay d = decay(x);
    return d.under / fma(d.power, d.over, d.under);
}

// tanh(k / 2)
alignas(64) constexpr float kTanhOfHalves[16] = {
    0.0f,         0.462117165f, 0.761594176f, 0.905148268f, 0.964027584f, 0.986614287f, 0.995054781f, 0.998177886f,
    0.999329329f, 0.999753237f, 0.999909222f, 0.999966621f, 0.999987721f, 0.999995470f, 0.999998331f, 0.999999404f};

UNROLLED_INLINE Vector tanh(Vector x) {
    // |x| = a + r with a = k / 2, k at most 15. Behind that r grows up to 1.75, where the polynomial is poor, but the
    // slope of tanh is below 1e-6. The sum with 1.5 * 2^22 has no bits below a half, and ends in k.
    constexpr float kHalves = 6291456.0f;
    const Vector size = minimum(broadcast(9.25f), magnitude(x));
    // The factor moves the step from k = 0 to 1 to |x| = 0.256, where tanh is above 1/4: just below, an ulp is half as
    // large, and the sum at the end would be worth 3.5 of them.
    const Vector shifted = minimum(broadcast(kHalves + 7.5f), fma(size, broadcast(0.975f), broadcast(kHalves)));
    const Vector r = size - (shifted - broadcast(kHalves));
    const Vector t = look_up(kTanhOfHalves, shifted);
    // tanh r = r / c with c = r coth r, even in r. tanh(a + r) = t + (1 - t^2) tanh r / (1 + t tanh r).
    const Vector square = r * r;
    const Vector slope = fma(square, broadcast(-2.2032e-2f), broadcast(0.3333295f));
    const Vector c = fma(square, slope, broadcast(1.0f));
    const Vector result = fma(subtract_product(broadcast(1.0f), t, t), r / fma(t, r, c), t);
    return with_sign_of(result, x);
}

}  // namespace UNROLLED_ISA
}  // namespace unrolled
