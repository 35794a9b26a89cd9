// Sigmoid and tanh of a vector of floats.
#pragma once

#include "vector.h"

namespace unrolled {
namespace UNROLLED_ISA {

UNROLLED_INLINE Vector exponential(Vector x) {
    const Vector n = nearest(x * broadcast(1.44269504088896341f));
    Vector r = fma(n, broadcast(-0.693359375f), x);
    r = fma(n, broadcast(2.12194440e-4f), r);
    Vector p = broadcast(1.9875691500e-4f);
    p = fma(p, r, broadcast(1.3981999507e-3f));
    p = fma(p, r, broadcast(8.3334519073e-3f));
    p = fma(p, r, broadcast(4.1665795894e-2f));
    p = fma(p, r, broadcast(1.6666665459e-1f));
    p = fma(p, r, broadcast(5.0000001201e-1f));
    p = fma(p, r * r, r) + broadcast(1.0f);
    return times_power_of_two(p, n);
}

UNROLLED_INLINE Vector sigmoid(Vector x) {
    const Vector e = exponential(minimum(broadcast(87.0f), maximum(broadcast(-87.0f), zero() - x)));
    return broadcast(1.0f) / (broadcast(1.0f) + e);
}

UNROLLED_INLINE Vector tanh(Vector x) {
    const Vector clamped = minimum(broadcast(9.0f), maximum(broadcast(-9.0f), x));
    const Vector q = clamped * clamped;
    Vector p = broadcast(-2.76076847742355e-16f);
    p = fma(p, q, broadcast(2.00018790482477e-13f));
    p = fma(p, q, broadcast(-8.60467152213735e-11f));
    p = fma(p, q, broadcast(5.12229709037114e-08f));
    p = fma(p, q, broadcast(1.48572235717979e-05f));
    p = fma(p, q, broadcast(6.37261928875436e-04f));
    p = fma(p, q, broadcast(4.89352455891786e-03f));
    Vector d = broadcast(1.19825839466702e-06f);
    d = fma(d, q, broadcast(1.18534705686654e-04f));
    d = fma(d, q, broadcast(2.26843463243900e-03f));
    d = fma(d, q, broadcast(4.89352518554385e-03f));
    return clamped * p / d;
}

}  // namespace UNROLLED_ISA
}  // namespace unrolled
