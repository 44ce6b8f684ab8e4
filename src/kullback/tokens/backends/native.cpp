// The sums and slopes of `interface.py`, one row at a time, on all cores. Compiled at first use by
// native.py, which documents the arguments; the tests hold it to the reference in float64.
//
// Rows are read in blocks of 2048 logits. Everything of one block is float32 (float64 where a side
// is), in lanes of the widest vectors that the compiler may use; totals over blocks are double.
// Vectors are those of GCC and Clang; instructions that have no other spelling are in `Isa` below.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

#define INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define WIDTH 64
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define WIDTH 32
#else
#define WIDTH 16
#endif

namespace {

const int64_t BLOCK = 2048;
const double LN2 = 0.69314718055994530942, NONE = std::numeric_limits<double>::quiet_NaN();

// the order of Sum and of Slope in interface.py
enum { P_MAX, P_LOG, Q_MAX, Q_LOG, P_ENTROPY, Q_ENTROPY, KL, REVERSE_KL, P_ALONE, Q_ALONE,
       P_LOST, Q_LOST, JS_P, JS_Q, P_TOP, Q_TOP, P_AT, Q_AT, NOTE, SUMS };
enum { ONE, RATIO, LOG, MIX, STEP, AT, SIDE };

// what is asked of a call, a set of bits, and the dtypes; the same in native.py
enum { ASK_KL = 1, ASK_MORE = 2, ASK_JS = 4, ASK_TOP = 8, ASK_ENTROPY = 16, ASK_HALVES = 32 };
enum { FLOAT32, BFLOAT16, FLOAT16, FLOAT64 };
const int64_t SIZES[] = {4, 2, 2, 8};

// --- vectors ------------------------------------------------------------------------------------

typedef float VF __attribute__((vector_size(WIDTH)));
typedef double VD __attribute__((vector_size(WIDTH)));
typedef int32_t MF __attribute__((vector_size(WIDTH)));
typedef int64_t MD __attribute__((vector_size(WIDTH)));

template <class R> struct Lanes;
template <> struct Lanes<float> {
    typedef VF V; typedef MF M; typedef int32_t I;
    static constexpr int MANTISSA = 23;
    static constexpr I BIAS = 127;
    static constexpr float ROUND = 12582912.0f;  // 1.5 · 2^23, which rounds to an integer
};
template <> struct Lanes<double> {
    typedef VD V; typedef MD M; typedef int64_t I;
    static constexpr int MANTISSA = 52;
    static constexpr I BIAS = 1023;
    static constexpr double ROUND = 6755399441055744.0;
};
template <class R> using Vec = typename Lanes<R>::V;
template <class R> using Mask = typename Lanes<R>::M;
template <class R> constexpr int64_t LANES = WIDTH / sizeof(R);

template <class R> INLINE Vec<R> all(R x) { return x - Vec<R>{}; }
template <class R> INLINE Vec<R> load(const R* x) { Vec<R> v; std::memcpy(&v, x, WIDTH); return v; }
template <class R> INLINE void store(R* x, Vec<R> v) { std::memcpy(x, &v, WIDTH); }
template <class V> INLINE V bigger(V a, V b) { return a > b ? a : b; }  // b where one is NaN
template <class V> INLINE V smaller(V a, V b) { return a < b ? a : b; }

#if WIDTH == 64
INLINE VF fma(VF a, VF b, VF c) { return (VF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE VD fma(VD a, VD b, VD c) { return (VD)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
INLINE VF below(VF x) { return (VF)_mm512_reduce_ps((__m512)x, 9); }  // x − floor(x)
INLINE VD below(VD x) { return (VD)_mm512_reduce_pd((__m512d)x, 9); }
INLINE VF off(VF x) { return (VF)_mm512_reduce_ps((__m512)x, 8); }  // x − its nearest integer
INLINE VD off(VD x) { return (VD)_mm512_reduce_pd((__m512d)x, 8); }
INLINE VF scaled(VF x, VF k) { return (VF)_mm512_scalef_ps((__m512)x, (__m512)k); }  // x 2^floor(k)
INLINE VD scaled(VD x, VD k) { return (VD)_mm512_scalef_pd((__m512d)x, (__m512d)k); }
#elif WIDTH == 32
INLINE VF fma(VF a, VF b, VF c) { return (VF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE VD fma(VD a, VD b, VD c) { return (VD)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
#else
template <class V> INLINE V fma(V a, V b, V c) { return a * b + c; }
#endif

// of all lanes, added up in double
#if WIDTH == 64
template <class R> INLINE double total(VD v) { return _mm512_reduce_add_pd((__m512d)v); }
template <class R> INLINE double total(VF v) {
    __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v));
    __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1));
    return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
}
#else
template <class R> INLINE double total(Vec<R> v) {
    double sum[2] = {};
    for (int i = 0; i < LANES<R>; i++) sum[i & 1] += double(v[i]);
    return sum[0] + sum[1];
}
#endif

// Lanes to keep: a register of bits with AVX-512, else a vector of 0 and −1
#if WIDTH == 64
template <class R> struct BitsOf { typedef __mmask16 B; };
template <> struct BitsOf<double> { typedef __mmask8 B; };
template <class R> using Bits = typename BitsOf<R>::B;
INLINE __mmask16 lacks(VF x) { return _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-INFINITY), _CMP_EQ_OQ); }
INLINE __mmask8 lacks(VD x) { return _mm512_cmp_pd_mask((__m512d)x, _mm512_set1_pd(-INFINITY), _CMP_EQ_OQ); }
INLINE VF where(__mmask16 k, VF a, VF b) { return (VF)_mm512_mask_blend_ps(k, (__m512)b, (__m512)a); }
INLINE VD where(__mmask8 k, VD a, VD b) { return (VD)_mm512_mask_blend_pd(k, (__m512d)b, (__m512d)a); }
INLINE VF kept(__mmask16 k, VF a) { return (VF)_mm512_maskz_mov_ps(k, (__m512)a); }
INLINE VD kept(__mmask8 k, VD a) { return (VD)_mm512_maskz_mov_pd(k, (__m512d)a); }
INLINE VF plus(VF sum, __mmask16 k, VF a) { return (VF)_mm512_mask_add_ps((__m512)sum, k, (__m512)sum, (__m512)a); }
INLINE VD plus(VD sum, __mmask8 k, VD a) { return (VD)_mm512_mask_add_pd((__m512d)sum, k, (__m512d)sum, (__m512d)a); }
INLINE int64_t count(unsigned k) { return __builtin_popcount(k); }
INLINE bool none(unsigned k) { return k == 0; }
#else
template <class R> using Bits = Mask<R>;
INLINE MF lacks(VF x) { return x == -INFINITY; }
INLINE MD lacks(VD x) { return x == -double(INFINITY); }
template <class M, class V> INLINE V where(M k, V a, V b) { return k ? a : b; }
template <class M, class V> INLINE V kept(M k, V a) { return (V)(k & (M)a); }
template <class M, class V> INLINE V plus(V sum, M k, V a) { return sum + kept(k, a); }
template <class M> INLINE int64_t count(M k) {
    int64_t sum = 0;
    for (size_t i = 0; i < sizeof(M) / sizeof(k[0]); i++) sum -= k[i];
    return sum;
}
#endif
template <class M> INLINE bool any(M k) {
    int64_t part[WIDTH / 8], found = 0;
    std::memcpy(part, &k, WIDTH);
    for (int64_t each : part) found |= each;
    return found != 0;
}
#if WIDTH != 64
template <class M> INLINE bool none(M k) { return !any(k); }
#endif
template <class R> R largest(Vec<R> v) { R top = v[0]; for (int i = 1; i < LANES<R>; i++) top = v[i] > top ? v[i] : top; return top; }

// Horner's rule, the highest power first
template <class V, class R, int N> INLINE V polynomial(V x, const R (&c)[N]) {
    V sum = c[0] - V{};
    for (int i = 1; i < N; i++) sum = fma(sum, x, c[i] - V{});
    return sum;
}

// minimax: 2^x on [0, 1] and on |x| ≤ ½, (2^x − 1 − x log 2) / x² and (x − log(1 + x)) / x² there
template <class R> struct Poly;
template <> struct Poly<float> {
    static constexpr float unit[] = {0.0002161291753f, 0.001246784563f, 0.009675451663f,
        0.05548528057f, 0.2402293056f, 0.6931470444f, 1.0f};
    static constexpr float half[] = {0.0001535336662f, 0.001339887436f, 0.009618437341f,
        0.05550332471f, 0.2402264791f, 0.6931472029f, 1.0f};
    static constexpr float unit_short[] = {0.001877576592f, 0.008989340245f, 0.05582631798f,
        0.240153617f, 0.6931530732f, 0.9999999251f};
    static constexpr float half_short[] = {0.00132764714f, 0.009675541296f, 0.05550713275f,
        0.2402211973f, 0.6931469671f, 1.000000072f};
    static constexpr float excess[] = {0.000015265440983f, 0.00015453114778f, 0.0013333601957f,
        0.0096180826776f, 0.055504108218f, 0.2402265076f};
    static constexpr float excess_short[] = {0.0001541727929f, 0.001338125023f, 0.009618172197f,
        0.05550381112f, 0.2402265048f};
    static constexpr float log[] = {-0.1637029632f, 0.1698436614f, -0.06071902965f,
        0.07199184269f, -0.1157414901f, 0.1288922456f, -0.1425272995f, 0.1664289891f,
        -0.2000096654f, 0.2500052306f, -0.3333332567f, 0.4999999815f};
};
template <> struct Poly<double> {
    static constexpr double unit[] = {9.9522146640082496e-9, 9.46094540530215658e-8,
        1.33127200405062807e-6, 0.0000152446596481488145, 0.000154039574912452162,
        0.00133335437309264215, 0.00961812940917660458, 0.055504108628244648,
        0.240226506961360831, 0.693147180559891271, 1.0};
    static constexpr double half[] = {7.03727847674443094e-9, 1.02085378908970797e-7,
        1.32156628389499781e-6, 0.0000152526581166373749, 0.000154035299611190857,
        0.00133335582285613271, 0.00961812910803460518, 0.0555041086644588344,
        0.240226506959087677, 0.693147180559949775, 1.0};
    static constexpr double excess[] = {4.44838589936886952e-10, 7.07096714286325747e-9,
        1.01780994139352332e-7, 1.3215451686820291e-6, 0.0000152527337605575683,
        0.000154035304246928298, 0.00133335581464650099, 0.00961812910761870738,
        0.0555041086648215043, 0.240226506959100761};
    static constexpr auto &unit_short = unit, &half_short = half, &excess_short = excess;
    static constexpr double log[] = {0.200160077302904108, -0.198933147512608714,
        -0.106699827782306677, 0.0974570509774805693, 0.114874735899471867, -0.111209762950296501,
        0.0301152370139602216, -0.0351557107723824513, 0.0592952971154514786,
        -0.0619537056826590004, 0.0620256514209620475, -0.0662923811841972268,
        0.071469218117521313, -0.0769528821789795627, 0.0833310245551366349,
        -0.0909075500445247492, 0.100000083339538429, -0.111111160134202728, 0.124999998227867703,
        -0.14285714198665408, 0.166666666686023578, -0.200000000007150554, 0.24999999999991806,
        -0.333333333333315975, 0.500000000000000056};
};

// x^0 … of a polynomial times 2^LIFT
template <int LIFT, class R, int N> INLINE Vec<R> lifted(Vec<R> x, const R (&c)[N]) {
    const R lift = R(int64_t(1) << LIFT);
    Vec<R> sum = all<R>(c[0] * lift);
    for (int i = 1; i < N; i++) sum = fma(sum, x, all<R>(c[i] * lift));
    return sum;
}

// 2^(x + LIFT): 0 for −inf, inf where it does not fit, NaN for NaN. Sums are kept LIFT powers of two
// up, so that no mass that matters beside a log-ratio within the range of 2^x is rounded to 0.
// SHORT: to 7e-8 in float32, for what only weighs the terms of a divergence.
template <int LIFT, class R, bool SHORT = false> INLINE Vec<R> exp2(Vec<R> x) {
#if WIDTH == 64
    Vec<R> f = below(x);
    return scaled(SHORT ? lifted<LIFT, R>(f, Poly<R>::unit_short) : lifted<LIFT, R>(f, Poly<R>::unit), x);
#else
    typedef typename Lanes<R>::I I;
    const I bias = Lanes<R>::BIAS + LIFT;
    x = bigger(all<R>(R(-bias)), x);  // in this order, which keeps NaN
    x = smaller(all<R>(R(Lanes<R>::BIAS + 1 - LIFT)), x);
    Vec<R> shifted = x + Lanes<R>::ROUND, f = x - (shifted - Lanes<R>::ROUND);
    Mask<R> power = ((Mask<R>)shifted << Lanes<R>::MANTISSA) + (bias << Lanes<R>::MANTISSA);
    return (SHORT ? polynomial(f, Poly<R>::half_short) : polynomial(f, Poly<R>::half)) * (Vec<R>)power;
#endif
}

// Of 2^l, with l = k + g and |g| ≤ ½: the power 2^k and the excess 2^g − 1 − g log 2. Where k is 0,
// g is l exactly, and what is made of them keeps its digits however small l is.
template <class R> struct Power {
    Vec<R> l, g, scale, curve;
    INLINE Vec<R> less_one() const { return fma(scale, fma(g, all<R>(R(LN2)), curve), scale - R(1)); }
    INLINE Vec<R> whole() const { return fma(scale, fma(g, all<R>(R(LN2)), curve), scale); }  // 2^l
    INLINE Vec<R> back() const {  // 2^l (2^−l − 1 + l log 2)
        Vec<R> line = l * R(LN2), near = fma(line, less_one(), -excess());
        return scale == R(1) ? near : fma(whole(), line, -less_one());
    }
    INLINE Vec<R> excess() const {  // 2^l − 1 − l log 2
        Vec<R> line = fma(all<R>(R(LN2)), fma(scale, g, -l), scale - R(1));
        return fma(scale, curve, line);
    }
};
template <class R, bool SHORT = false> INLINE Power<R> power(Vec<R> l) {
    Power<R> e;
    e.l = l;
#if WIDTH == 64
    e.g = off(l);
    e.scale = scaled(all<R>(R(1)), l - e.g);
#else
    typedef typename Lanes<R>::I I;
    const I bias = Lanes<R>::BIAS;
    Vec<R> x = bigger(all<R>(R(-bias)), l);
    x = smaller(all<R>(R(bias + 1)), x);
    Vec<R> shifted = x + Lanes<R>::ROUND;
    e.g = x - (shifted - Lanes<R>::ROUND);
    e.scale = (Vec<R>)(((Mask<R>)shifted << Lanes<R>::MANTISSA) + (bias << Lanes<R>::MANTISSA));
#endif
    Vec<R> curve = SHORT ? polynomial(e.g, Poly<R>::excess_short) : polynomial(e.g, Poly<R>::excess);
    e.curve = curve * (e.g * e.g);
    return e;
}

// Of 1 + x = 2^k (1 + f), x > −1: k, f and f − log(1 + f). For −½ ≤ x < ½ k is 0 and f is x, so that
// nothing cancels in what is made of them.
template <class R> struct Log {
    Vec<R> k, f, excess;
    INLINE Vec<R> log1p() const { return fma(k, all<R>(R(LN2)), f - excess); }
};
template <class R> INLINE Log<R> log_of(Vec<R> x) {
    typedef typename Lanes<R>::I I;
    const I three_quarters = sizeof(R) == 4 ? I(0x3f400000) : I(0x3fe8000000000000);
    Vec<R> m = x + R(1);
    Mask<R> k = ((Mask<R>)m - three_quarters) >> Lanes<R>::MANTISSA;  // m / 2^k from ¾ to 1½
    k = m >= R(0.5) ? bigger(k, Mask<R>{}) : k;
    Vec<R> over = (Vec<R>)((Lanes<R>::BIAS - k) << Lanes<R>::MANTISSA);  // 2^−k
    Log<R> l;
    l.k = __builtin_convertvector(k, Vec<R>), l.f = fma(x, over, over - R(1));
    l.excess = l.f * l.f * polynomial(l.f, Poly<R>::log);
    return l;
}

// --- reading and writing of dtypes --------------------------------------------------------------

struct bfloat16 { uint16_t bits; };
struct float16 { uint16_t bits; };

INLINE float from_bits(uint32_t bits) { float x; std::memcpy(&x, &bits, 4); return x; }
INLINE uint32_t to_bits(float x) { uint32_t bits; std::memcpy(&bits, &x, 4); return bits; }

INLINE float wide(float x) { return x; }
INLINE double wide(double x) { return x; }
INLINE float wide(bfloat16 x) { return from_bits(uint32_t(x.bits) << 16); }
INLINE float wide(float16 x) {
    uint32_t rest = uint32_t(x.bits & 0x7fff) << 13, sign = uint32_t(x.bits & 0x8000) << 16;
    float scaled = from_bits(rest) * from_bits(0x77800000u);  // 2^112, the difference of the biases
    return from_bits((rest >= 0x0f800000u ? rest | 0x7f800000u : to_bits(scaled)) | sign);
}
INLINE void put(double x, double& out) { out = x; }
INLINE void put(double x, float& out) { out = float(x); }
INLINE void put(float x, double& out) { out = x; }
INLINE void put(float x, float& out) { out = x; }
INLINE void put(float x, bfloat16& out) {  // to nearest, ties to even
    uint32_t bits = to_bits(x), rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    out.bits = x != x ? 0x7fc0 : rounded;
}
INLINE void put(float x, float16& out) {
    uint32_t sign = (to_bits(x) >> 16) & 0x8000, bits = to_bits(x) & 0x7fffffff;
    uint32_t tiny = to_bits(from_bits(bits) + 0.5f) - 0x3f000000u;  // rounds to the least steps
    uint32_t usual = (bits + 0xc8000fffu + ((bits >> 13) & 1)) >> 13;
    uint32_t found = bits < 0x38800000u ? tiny : usual;
    found = bits >= 0x47800000u ? 0x7c00 : found;
    out.bits = sign | (bits > 0x7f800000u ? 0x7e00 : found);
}
INLINE void put(double x, bfloat16& out) { put(float(x), out); }
INLINE void put(double x, float16& out) { put(float(x), out); }

template <class R, class T> void widen(const T* x, int64_t n, R* out) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) out[i] = wide(x[i]);
}
template <class R, class T> void narrow(const R* x, int64_t n, T* out) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) put(x[i], out[i]);
}
#if WIDTH >= 32
template <> void widen(const float16* x, int64_t n, float* out) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(x + i))));
    for (; i < n; i++) out[i] = wide(x[i]);
}
template <> void narrow(const float* x, int64_t n, float16* out) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i*)(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), 0));
    for (; i < n; i++) put(x[i], out[i]);
}
#endif

struct Row {  // one side's logits of one row
    const void* at; int dtype;
    explicit operator bool() const { return at != nullptr; }
    const char* byte(int64_t i) const { return (const char*)at + i * SIZES[dtype]; }
};

template <class R> constexpr int NATURAL = sizeof(R) == 4 ? FLOAT32 : FLOAT64;

template <class R> void read(const Row& x, int64_t start, int64_t n, R* out) {
    const char* from = x.byte(start);
    if (x.dtype == FLOAT32) widen<R>((const float*)from, n, out);
    if (x.dtype == BFLOAT16) widen<R>((const bfloat16*)from, n, out);
    if (x.dtype == FLOAT16) widen<R>((const float16*)from, n, out);
    if constexpr (sizeof(R) == 8) {
        if (x.dtype == FLOAT64) widen<R>((const double*)from, n, out);
    }
}
template <class R> void write(const R* x, int64_t n, int dtype, char* out) {
    if (dtype == FLOAT32) narrow(x, n, (float*)out);
    if (dtype == BFLOAT16) narrow(x, n, (bfloat16*)out);
    if (dtype == FLOAT16) narrow(x, n, (float16*)out);
    if (dtype == FLOAT64) narrow(x, n, (double*)out);
}

// Writes a vector, past the caches where x is a multiple of WIDTH: memory that is written whole need
// not be read first, which for gradients larger than the caches is a quarter of the bytes that move.
template <class V> INLINE void put(char* x, V v, bool past) {
#if WIDTH == 64
    if (past) return _mm512_stream_si512((__m512i*)x, (__m512i)v);
#elif WIDTH == 32
    if (past) return _mm256_stream_si256((__m256i*)x, (__m256i)v);
#endif
    (void)past, std::memcpy(x, &v, WIDTH);
}
const int64_t PAST_CACHES = int64_t(1) << 24;  // bytes of a gradient from which it is written so

// Two vectors at a time of one dtype, as floats. Pairs of bfloat16 are taken apart where they lie:
// the even ones, then the odd ones, which is the same order for every row of that dtype.
template <class R> struct Plain {
    typedef R Real;
    static constexpr int dtype = NATURAL<R>;
    static INLINE void two(const char* x, Vec<R>& a, Vec<R>& b) {
        a = load((const R*)x), b = load((const R*)x + LANES<R>);
    }
    static INLINE void put_two(char* x, Vec<R> a, Vec<R> b, bool past) {
        put(x, a, past), put(x + WIDTH, b, past);
    }
};
struct Bfloat16 {
    typedef float Real;
    static constexpr int dtype = BFLOAT16;
    static INLINE void two(const char* x, VF& a, VF& b) {
        MF both;
        std::memcpy(&both, x, WIDTH);
        a = (VF)(both << 16), b = (VF)(both & int32_t(0xffff0000));
    }
    static INLINE MF rounded(VF x) { return (MF)x + 0x7fff + (((MF)x >> 16) & 1); }
    static INLINE void put_two(char* x, VF a, VF b, bool past) {
        MF low = (rounded(a) >> 16) & 0xffff, both = (rounded(b) & int32_t(0xffff0000)) | low;
        put(x, both, past);
    }
};
#if WIDTH == 64
struct Float16 {
    typedef float Real;
    static constexpr int dtype = FLOAT16;
    static INLINE void two(const char* x, VF& a, VF& b) {
        a = (VF)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)x));
        b = (VF)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)x + 1));
    }
    static INLINE void put_two(char* x, VF a, VF b, bool past) {
        const __m512i low = _mm512_castsi256_si512(_mm512_cvtps_ph((__m512)a, 0));
        put(x, _mm512_inserti64x4(low, _mm512_cvtps_ph((__m512)b, 0), 1), past);
    }
};
#endif

INLINE void prefetch(const char* x) { __builtin_prefetch(x); }

// One side's blocks: where they lie if the loop can read them there, else converted into `room` and
// filled up with −inf to whole pairs of vectors.
template <class R> struct Blocks {
    Row x;
    alignas(64) R room[BLOCK];
    explicit Blocks(const Row& row) : x(row) {}
    const char* there(int64_t start, int64_t n, int dtype) const {
        return x.dtype == dtype && n % (2 * LANES<R>) == 0 ? x.byte(start) : nullptr;
    }
    const char* get(int64_t start, int64_t n) {
        if (const char* found = there(start, n, NATURAL<R>)) return found;
        read(x, start, n, room);
        for (int64_t i = n; i % (2 * LANES<R>); i++) room[i] = -std::numeric_limits<R>::infinity();
        return (const char*)room;
    }
};

template <class R> INLINE int64_t filled(int64_t n) {
    return (n + 2 * LANES<R> - 1) / (2 * LANES<R>) * (2 * LANES<R>);
}

// A sum in every lane, of partial sums of STRETCH vectors: a term that outweighs all others costs the
// digits of its own stretch only
template <class R> struct Sum {
    Vec<R> all{}, part{};
    INLINE void operator+=(Vec<R> x) { part += x; }
    INLINE void add(Vec<R> x, Vec<R> y) { part = fma(x, y, part); }
    INLINE void add_where(Bits<R> k, Vec<R> x) { part = plus(part, k, x); }
    INLINE void flush() { all += part, part = Vec<R>{}; }
    double total() const { return ::total<R>(all); }
};
template <class R> constexpr int64_t STRETCH = 16 * LANES<R>;
template <class R> INLINE bool ends(int64_t i, int64_t n) { return i % STRETCH<R> == 0 || i == n; }
template <class... S> INLINE void flush(S&... sums) { (sums.flush(), ...); }

// --- sums over a block --------------------------------------------------------------------------

const int LIFT = 60;
const double MUCH = 16.0 * double(int64_t(1) << LIFT);  // of a block: its largest may be above the anchor

struct Tables;
struct Shared {  // the arguments that all rows have in common
    int64_t vocab;
    double temperature, beta;
    int asks;
    const Tables* tables = nullptr;  // of functions of the log-ratio, for JS, or none
    static bool half(int dtype) { return dtype == BFLOAT16 || dtype == FLOAT16; }
    double per_nat() const { return 1.0 / (LN2 * temperature); }  // powers of two per logit
};

// A logit that exponents are counted from: x per_nat − from
template <class R> struct Anchor {
    R logit, scale, at;
    double from, rest;  // rest: from less the logit in powers, once: two roundings would be two numbers
    Anchor(double x, const Shared& s) : logit(R(x)), scale(R(s.per_nat())) {
        at = R(logit * double(scale));
        if (at > logit * double(scale))  // its own exponent is 0 or just above: 2^f is best there
            at = std::nextafter(at, -std::numeric_limits<R>::infinity());
        from = WIDTH == 16 ? logit * double(scale) : double(at);
        rest = WIDTH == 16 ? 0.0 : std::fma(-double(logit), double(scale), from);
    }
    INLINE Vec<R> exponent(Vec<R> x) const {
#if WIDTH == 16
        return (x - logit) * scale;
#else
        return fma(x, all<R>(scale), all<R>(-at));
#endif
    }
    // What rounding of an exponent loses; 0 where it is not finite, and without a fused product
    INLINE Vec<R> lost(Vec<R> x, Vec<R> exponent) const {
#if WIDTH == 16
        return (void)x, exponent - exponent;
#else
        Vec<R> sum = exponent + at, back = sum - exponent;
        Vec<R> of_sum = (exponent - (sum - back)) + (at - back);
        Vec<R> found = fma(x, all<R>(scale), -sum) - of_sum;
        return found == found ? found : Vec<R>{};
#endif
    }
    // from the other's anchor where k says so
    INLINE Vec<R> exponent(Vec<R> x, Bits<R> k, const Anchor& other) const {
#if WIDTH == 16
        return (x - where(k, all<R>(other.logit), all<R>(logit))) * scale;
#else
        return fma(x, all<R>(scale), where(k, all<R>(-other.at), all<R>(-at)));
#endif
    }
    double log(double sum) const {  // log of 2^from times the sum, less the logit over the temperature
        return LN2 * (std::log2(sum) + rest);
    }
};

// Sums over tokens, 2^LIFT times too large; over those that both sides have, where nothing else is
// said. u and v are p and q up to factors, l = log2 v/u; c, which makes v of q, is guessed and
// corrected so that Σ u and Σ v are about equal: then nothing cancels in A. In the end it is moved to
// where the whole of p and of q are equal.
struct Totals {
    double U = 0, A = 0, B = 0;  // Σ u, Σ v − u − u l log 2 (≥ 0), Σ v − u
    double back = 0;  // Σ u − v + v l log 2 (≥ 0)
    // Σ u log2 u, Σ v log2 v, of all tokens of a side, of u and v without 2^LIFT, and the Σ v of the
    // same roundings: U + B is another by some 2^-24, which the size of log2 v would multiply
    double p_log = 0, q_log = 0, v_sum = 0;
    double p_lost = 0, q_lost = 0, p_alone = 0, q_alone = 0;  // u, v, tokens that only one side has
    // Of what the errors of A and of B are some digits: sums of the sizes of their terms at the c of
    // their time, carried on as the errors are
    double A_rough = 0, B_rough = 0;
    double p_all() const { return U + p_lost; }
    double q_all() const { return U + B + q_lost; }
    double excess() const { return A + q_lost; }
    bool finite() const {
        return std::isfinite(U + A + B + back + p_log + q_log + p_lost + q_lost) && U + p_lost >= 0;
    }
    // log Σ v / Σ u over tokens that both have, and over those of either side
    double off() const { return U > 0 && U + B > 0 ? std::log1p(B / U) : 0.0; }
    double off_whole() const {
        const double P = p_all(), Q = q_all();
        if (!(P > 0 && Q > 0)) return 0.0;
        return Q < 0.5 * P ? std::log(Q / P) : std::log1p((B + q_lost - p_lost) / P);
    }
    // Whether c is so near that to correct it would take less than half of A
    bool near() const { return std::fabs(B) <= 0.25 * U && B * B <= A * U; }
    void add(const Totals& t) {
        U += t.U, A += t.A, B += t.B, back += t.back, p_log += t.p_log, q_log += t.q_log;
        v_sum += t.v_sum, A_rough += t.A, B_rough += t.A + std::fabs(t.B - t.A);
        p_lost += t.p_lost, q_lost += t.q_lost, p_alone += t.p_alone, q_alone += t.q_alone;
    }
    void raise(double powers) {  // to u 2^powers, v 2^powers
        double by = std::exp2(powers);
        p_log = by * (p_log + powers * p_all()), q_log = by * (q_log + powers * v_sum);
        U *= by, v_sum *= by, A *= by, B *= by, back *= by, p_lost *= by, q_lost *= by, A_rough *= by, B_rough *= by;
    }
    void move(double shift) {  // to v e^−shift
        double less = std::exp(-shift), moved = less * B + U * std::expm1(-shift);
        A += moved - B + shift * U;
        back = less * (back + U * (std::expm1(shift) - shift) - shift * B);
        q_log = less * (q_log - shift / LN2 * v_sum), v_sum *= less;
        q_lost *= less, A_rough += std::fabs(less - 1.0) * B_rough, B_rough *= less;
        B = moved;
    }
};

template <class R> void block_tops(const R* x, int64_t n, double& top) {
    Vec<R> most[4];
    for (auto& each : most) each = all<R>(-std::numeric_limits<R>::infinity());
    for (int64_t i = 0; i < n; i += 2 * LANES<R>)
        for (int j = 0; j < 2; j++) {
            Vec<R>& each = most[(i / LANES<R> + j) & 3];
            each = bigger(load(x + i + j * LANES<R>), each);
        }
    for (auto& each : most) top = std::max(top, double(largest<R>(each)));
}

// log2 of v/u from the difference of logits. Without a fused product c is subtracted first, and is in
// logits: the product would be rounded by what c may be far larger than the result.
template <class V, class R> INLINE V ratio(V difference, R scale, R c) {
#if WIDTH == 16
    return (difference - c) * scale;
#else
    return fma(difference, scale - V{}, -c - V{});
#endif
}
template <class R> INLINE R from_powers(double c, R scale) { return R(WIDTH == 16 ? c / double(scale) : c); }
template <class R> INLINE double in_powers(R c, R scale) { return WIDTH == 16 ? double(c) * double(scale) : double(c); }

// What a loop over a block takes account of: EVEN has no token that one side lacks; HOLES has some;
// EXACT is that, and differences of logits keep what rounding to R would lose of them; ANY has any
// log-ratio, by `any_block`: in the others a sum is not finite where one is beyond the range of 2^l.
enum Form { EVEN, HOLES, EXACT, ANY };

// What y − x loses by rounding (Knuth)
template <class V> INLINE V lost_by(V x, V y, V difference) {
    V back = difference - y;
    return (y - (difference - back)) - (x + back);
}

// What only q has is summed as its exponents from q's anchor are, and put right in the end.
template <class In, bool MORE, Form FORM, class R = typename In::Real>
Totals even_block(const char* p, const char* q, int64_t n, const Anchor<R>& a, const Anchor<R>& q_a,
                  R c, int64_t ahead) {
    constexpr bool HOLED = FORM != EVEN;
    Sum<R> U, A, L, back, p_log, q_log, V, p_lost, q_lost, lost_log;
    int64_t p_alone = 0, q_alone = 0;
    const int64_t size = SIZES[In::dtype];
    for (int64_t i = 0; i < n; i += 2 * LANES<R>) {
        const char *at_p = p + i * size, *at_q = q + i * size;
        for (int64_t line = 0; line < 2 * LANES<R> * size; line += 64)
            prefetch(at_p + ahead + line), prefetch(at_q + ahead + line);
        Vec<R> x[2], y[2];
        In::two(at_p, x[0], x[1]), In::two(at_q, y[0], y[1]);
        for (int j = 0; j < 2; j++) {
            Bits<R> p_lacks{}, q_lacks{}, both{};
            Vec<R> t, l;
            if (HOLED) {
                p_lacks = lacks(x[j]), q_lacks = lacks(y[j]), both = ~(p_lacks | q_lacks);
                t = a.exponent(where(p_lacks, y[j], x[j]), p_lacks, q_a);
                Vec<R> d = y[j] - x[j];
                l = ratio(d, a.scale, c);
                if (FORM == EXACT) l = fma(lost_by(x[j], y[j], d), all<R>(a.scale), l);
                l = kept(both, l);
            } else {
                t = a.exponent(x[j]);
                Vec<R> d = x[j] == y[j] ? Vec<R>{} : y[j] - x[j];
                l = ratio(d, a.scale, c);
            }
            if (MORE) t = bigger(all<R>(R(-1100)), t);
            Vec<R> u = exp2<LIFT, R, !MORE && FORM != EXACT>(t);
            if (HOLED && none(both)) {  // where few tokens are allowed most vectors are such
                p_lost.add_where(q_lacks, u), q_lost.add_where(p_lacks, u);
                p_alone += count(Bits<R>(q_lacks & ~p_lacks)), q_alone += count(Bits<R>(p_lacks & ~q_lacks));
                if (MORE) lost_log.add_where(p_lacks, u * t), p_log.add_where(~p_lacks, u * t);
                continue;
            }
            Power<R> e = power<R, true>(l);
            Vec<R> excess = e.excess();
            A.add(u, excess), L.add(u, l);
            if (HOLED) {  // u is 0 where both lack the token
                U.add_where(both, u), p_lost.add_where(q_lacks, u), q_lost.add_where(p_lacks, u);
                p_alone += count(Bits<R>(q_lacks & ~p_lacks)), q_alone += count(Bits<R>(p_lacks & ~q_lacks));
            } else {
                U += u;
            }
            if (MORE) {
                Vec<R> line = l * R(LN2), less_one = line + excess, v = fma(u, less_one, u);
                Vec<R> of_u = u * t, of_v = v * (t + l);
                back.add(u, e.back());
                if (HOLED) {
                    lost_log.add_where(p_lacks, of_u), p_log.add_where(~p_lacks, of_u);
                    q_log.add_where(both, of_v), V.add_where(both, v);
                } else {
                    p_log += of_u, q_log += of_v, V += v;
                }
            }
        }
        if (ends<R>(i + 2 * LANES<R>, n)) {
            flush(U, A, L);
            if (HOLED) flush(p_lost, q_lost);
            if (MORE) flush(back, p_log, q_log, V);
            if (MORE && HOLED) flush(lost_log);
        }
    }
    Totals sums;
    sums.U = U.total(), sums.A = A.total(), sums.B = sums.A + LN2 * L.total();
    if (MORE) sums.back = back.total(), sums.p_log = p_log.total(), sums.q_log = q_log.total();
    if (MORE) sums.v_sum = V.total();
    if (HOLED) {
        const double powers = q_a.from - a.from - in_powers(c, a.scale), times = std::exp2(powers);
        const double lost = q_lost.total();
        sums.p_lost = p_lost.total(), sums.q_lost = times * lost;
        sums.p_alone = double(p_alone), sums.q_alone = double(q_alone);
        if (MORE) sums.q_log += times * (lost_log.total() + powers * lost), sums.v_sum += times * lost;
    }
    return sums;
}

// Exponents of both sides: log2 p = p's exponent, log2 q = q's exponent + q_more, of sums or of norms;
// c + c_more = what log2 q/p is less than the difference of the logits in powers of two
template <class R> struct Norms {
    Anchor<R> p, q;
    R p_times, q_more, c, c_more;  // p_times: what probabilities are to be multiplied by
};

// One token as its larger probability W and the smaller, W 2^−d. Nothing can overflow, and a token
// that one side lacks is the limit d = ∞ (here 1e30).
template <class R> struct Token {
    Mask<R> swapped, p_only, q_only;  // q is the larger; which side alone has it
    Vec<R> log, rest, W, d, less_one, excess;  // log2 W and what it lacks; 2^−d − 1; 2^−d − 1 + d log 2
    Vec<R> large, small;  // W (…), of the larger's and of the smaller's divergence from the other
    INLINE Vec<R> lesser() const { return fma(W, less_one, W); }
    INLINE Vec<R> step() const { Vec<R> gap = W * less_one; return swapped ? -gap : gap; }  // q − p
};
// log2 of q/p, with what rounding of y − x loses
template <class R> INLINE Vec<R> log_ratio_of(Vec<R> x, Vec<R> y, const Norms<R>& n) {
    Vec<R> gap = x == y ? Vec<R>{} : y - x, lost = lost_by(x, y, gap);
    lost = lost == lost ? lost : Vec<R>{};  // one of them is −inf
    return ratio(gap, n.p.scale, n.c) + fma(lost, all<R>(n.p.scale), all<R>(-n.c_more));
}
template <class R> INLINE Token<R> token(Vec<R> x, Vec<R> y, const Norms<R>& n) {
    const R inf = std::numeric_limits<R>::infinity();
    Token<R> t;
    Vec<R> gap = x == y ? Vec<R>{} : y - x, l = log_ratio_of(x, y, n);
    t.swapped = l > R(0);
    t.q_only = gap == inf, t.p_only = gap == -inf;
    Vec<R> of_p = n.p.exponent(x), of_q = n.q.exponent(y);
    Vec<R> of = t.swapped ? of_q : of_p, more = t.swapped ? all<R>(n.q_more) : Vec<R>{};
    Vec<R> sum = of + more, back = sum - of;
    Vec<R> rest = (of - (sum - back)) + (more - back) + (t.swapped ? n.q.lost(y, of_q) : n.p.lost(x, of_p));
    t.log = bigger(all<R>(R(-1100)), sum);
    t.W = exp2<0, R>(t.log);
    t.rest = rest == rest ? rest : Vec<R>{};
    t.W = fma(t.W * R(LN2), t.rest, t.W);
    t.d = smaller(all<R>(R(1e30f)), t.swapped ? l : -l);
    Power<R> e = power<R>(-t.d);
    t.less_one = e.less_one(), t.excess = e.excess();
    t.large = t.W * t.excess;
    t.small = t.W * fma(t.less_one, t.less_one, -fma(t.less_one, t.excess, t.excess));
    return t;
}

template <class R, bool MORE> Totals any_block(const R* p, const R* q, int64_t n, const Norms<R>& norms) {
    Sum<R> U, A, B, V, back, p_log, q_log, p_lost, q_lost;
    const Vec<R> none{};
    Mask<R> p_alone{}, q_alone{};
    for (int64_t i = 0; i < n; i += LANES<R>) {
        Token<R> t = token<R>(load(p + i), load(q + i), norms);
        Vec<R> lesser = t.lesser();
        Mask<R> alone = t.p_only | t.q_only;
        U += alone ? none : t.swapped ? lesser : t.W, B += alone ? none : t.step();
        A += alone ? none : t.swapped ? t.small : t.large;
        p_lost += t.p_only ? t.W : none, q_lost += t.q_only ? t.W : none;
        p_alone -= t.p_only, q_alone -= t.q_only;
        if (MORE) {
            back += alone ? none : t.swapped ? t.large : t.small;
            Vec<R> of_large = fma(t.W, t.log, t.W * t.rest);
            Vec<R> of_small = fma(lesser, t.log - t.d, lesser * t.rest);
            p_log += t.swapped ? of_small : of_large, q_log += t.swapped ? of_large : of_small;
            V += t.swapped ? t.W : lesser;
        }
        if (ends<R>(i + LANES<R>, n)) {
            flush(U, A, B, p_lost, q_lost);
            if (MORE) flush(back, p_log, q_log, V);
        }
    }
    const double lift = double(int64_t(1) << LIFT);
    Totals sums;
    sums.U = lift * U.total(), sums.A = lift * A.total(), sums.B = lift * B.total();
    sums.back = lift * back.total();
    sums.p_log = lift * p_log.total(), sums.q_log = lift * q_log.total(), sums.v_sum = lift * V.total();
    sums.p_lost = lift * p_lost.total(), sums.q_lost = lift * q_lost.total();
    for (int64_t j = 0; j < LANES<R>; j++) sums.p_alone += double(p_alone[j]), sums.q_alone += double(q_alone[j]);
    return sums;
}

struct Mass { double sum, log; };  // Σ u and Σ u log2 u of one side, as in `Totals`

template <class In, bool LOGS, class R = typename In::Real>
Mass side_block(const char* x, int64_t n, const Anchor<R>& a, int64_t ahead) {
    Sum<R> U, T;
    Vec<R> v[2];
    const int64_t size = SIZES[In::dtype];
    for (int64_t i = 0; i < n; i += 2 * LANES<R>) {
        const char* at = x + i * size;
        for (int64_t line = 0; line < 2 * LANES<R> * size; line += 64) prefetch(at + ahead + line);
        In::two(at, v[0], v[1]);
        for (int j = 0; j < 2; j++) {
            Vec<R> t = a.exponent(v[j]);
            if (LOGS) t = bigger(all<R>(R(-1100)), t);
            Vec<R> u = exp2<LIFT, R>(t);
            U += u;
            if (LOGS) T.add(u, t);
        }
        if (ends<R>(i + 2 * LANES<R>, n)) flush(U, T);
    }
    return {U.total(), T.total()};
}

#if WIDTH == 64
// What JS sums, as functions of d = |log2 L/H| times the larger of H and L: of the sides, H has the
// larger weight, L the other, s ≤ ½. With m = H + s (L − H) and g(x) = (1 + x) log(1 + x) − x
//     MEAN:   JS over the larger, which is s g(E) − g(s E) with E = L/H − 1 where H is the larger
//     HEAVY:  what KL(H‖m) sums, H (s E − log(1 + s E)), over the larger
//     LARGER: log m/H or m/L, the larger below
// Each is d² (LARGER: d) times a smooth function, here a polynomial in each of sixteen pieces, for
// H ≥ L and then for L > H: from d + 2 = 2 up, four for every power of two; beyond d = FARTHEST they
// are constant in float32. Interpolated at Chebyshev points, they are within 3e-8 of themselves for s
// from LEAST_WEIGHT up (measured): for less, `js_block`.
enum { MEAN, HEAVY, LARGER, TABLES };
const int DEGREE = 5;
const double FARTHEST = 29.99, LEAST_WEIGHT = 0.03;

// (1 + x) log(1 + x) − x and x − log(1 + x), without cancellation near 0
double mixed_excess(double x) {
    double sum = 0.0;
    if (std::fabs(x) > 0.02) return x > -1.0 ? (1.0 + x) * std::log1p(x) - x : 1.0;
    for (int k = 9; k >= 2; k--) sum = (k % 2 ? -1.0 : 1.0) / (k * (k - 1)) + x * sum;
    return x * x * sum;
}
double log_excess(double x) {
    double sum = 0.0;
    if (std::fabs(x) > 0.02) return x - std::log1p(x);
    for (int k = 9; k >= 2; k--) sum = (k % 2 ? -1.0 : 1.0) / k + x * sum;
    return x * x * sum;
}
double of_ratio(int which, double s, bool light, double d) {
    const double l = d * LN2, E = std::expm1(light ? l : -l), scale = light ? std::exp(-l) : 1.0;
    if (which == MEAN) return scale * (s * mixed_excess(E) - mixed_excess(s * E)) / (d * d);
    if (which == HEAVY) return scale * log_excess(s * E) / (d * d);
    return std::log1p((light ? 1.0 - s : s) * std::expm1(-l)) / d;
}

struct Tables {
    float of[TABLES][DEGREE + 1][32];  // the highest power first
    double weight;

    explicit Tables(double s) : weight(s) {
        for (int which = 0; which < TABLES; which++)
            for (int piece = 0; piece < 32; piece++) {
                const double octave = std::exp2(1 + piece % 16 / 4), width = octave / 4;
                const double start = octave + piece % 4 * width - 2.0;
                fit(which, piece, start, width);
            }
    }
    // Newton's divided differences, multiplied out
    void fit(int which, int piece, double start, double width) {
        double z[DEGREE + 1], f[DEGREE + 1], c[DEGREE + 1] = {};
        for (int i = 0; i <= DEGREE; i++) {
            z[i] = width / 2 * (1 - std::cos((2 * i + 1) * std::acos(-1.0) / (2 * DEGREE + 2)));
            f[i] = of_ratio(which, weight, piece >= 16, start + z[i]);
        }
        for (int k = 1; k <= DEGREE; k++)
            for (int i = DEGREE; i >= k; i--) f[i] = (f[i] - f[i - 1]) / (z[i] - z[i - k]);
        for (int i = DEGREE; i >= 0; i--) {  // c ← c (x − z_i) + f_i
            for (int k = DEGREE; k > 0; k--) c[k] = c[k - 1] - z[i] * c[k];
            c[0] = f[i] - z[i] * c[0];
        }
        for (int k = 0; k <= DEGREE; k++) of[which][DEGREE - k][piece] = float(c[k]);
    }
    static std::shared_ptr<const Tables> find(double beta) {  // the last one is kept
        static std::mutex lock;
        static std::shared_ptr<const Tables> last;
        const double s = double(float(std::min(beta, 1.0 - beta)));
        if (s < LEAST_WEIGHT) return nullptr;
        std::lock_guard<std::mutex> guard(lock);
        if (!last || last->weight != s) last = std::make_shared<const Tables>(s);
        return last;
    }
};

struct Place {  // a piece's number and how far inside it
    __m512i piece; VF inside;
    INLINE Place(VF d, __mmask16 light) {
        const __m512i bits = (__m512i)(d + 2.0f), index = _mm512_srli_epi32(bits, 21);
        inside = (d + 2.0f) - (VF)_mm512_and_si512(bits, _mm512_set1_epi32(int(0xffe00000)));
        piece = _mm512_mask_or_epi32(index, light, index, _mm512_set1_epi32(16));
    }
    INLINE VF at(const float (&table)[DEGREE + 1][32]) const {
        VF sum{};
        for (int k = 0; k <= DEGREE; k++) {
            const VF c = (VF)_mm512_permutex2var_ps(_mm512_loadu_ps(table[k]), piece, _mm512_loadu_ps(table[k] + 16));
            sum = k ? fma(sum, inside, c) : c;
        }
        return sum;
    }
};

// One token of both sides by their log-ratio: which is the larger, and its log2
struct Apart {
    __mmask16 light; VF d, log;
    template <bool EXACT> static INLINE Apart of(VF heavy, VF light, const Norms<float>& n) {
        VF gap = light - heavy, l = ratio(gap, n.p.scale, n.c) - n.c_more;
        if (EXACT) {
            VF lost = lost_by(heavy, light, gap);
            l = fma(lost == lost ? lost : VF{}, all<float>(n.p.scale), l);
        }
        Apart a;
        a.light = _mm512_cmp_ps_mask((__m512)l, _mm512_setzero_ps(), _CMP_GT_OQ);
        a.d = smaller((VF)_mm512_abs_ps((__m512)l), all<float>(1000.0f));  // that where both lack it
        a.log = where(a.light, n.q.exponent(light) + n.q_more, n.p.exponent(heavy));
        return a;
    }
};
#endif

// JS of normalised sides, H the one of the larger weight, L the other, of weight s ≤ ½: with E = L/H − 1
// the mixture is H (1 + s E), and JS = Σ H (s g(E) − g(s E)), g(x) = (1 + x) log(1 + x) − x ≥ 0; near
// E = 0 that is H s (1 − s) E² / 2, so at most half of s g(E) cancels. Beside it KL(H‖m) is summed.
// Where log2 L/H is above ABOVE most of the two is the same, and L is not well known as H times L/H:
// there, with w = (1 − s) H / (s L), it is s L (−log s − log(1 + w)) − (1 − s) H log(1 + s E).
const double LIMIT = 60.0, ABOVE = 4.0;
struct Halves { double js = 0.0, heavy = 0.0; };
template <class R>
Halves js_block(const R* heavy, const R* light, int64_t n, const Norms<R>& norms, R s) {
    Sum<R> js, of_heavy;
    const Vec<R> slope = all<R>(R(-std::log(double(s))));
    for (int64_t i = 0; i < n; i += LANES<R>) {
        Vec<R> x = load(heavy + i), y = load(light + i), l = log_ratio_of(x, y, norms);
        Vec<R> u = exp2<LIFT, R>(norms.p.exponent(x));
        const Mask<R> above = l > R(ABOVE);
        l = smaller(all<R>(R(LIMIT)), bigger(all<R>(R(-1e30f)), l));
        Power<R> e = power<R>(l);
        Vec<R> r = e.less_one() * s, m = r + R(1);
        Log<R> log = log_of<R>(r);
        Vec<R> log1p = log.log1p(), near = fma(r, r, -(m * log.excess));
        Vec<R> of_js = u * fma(all<R>(s), e.back(), -(log.k == R(0) ? near : fma(m, log1p, -r)));
        Vec<R> of_h = u * (r - log1p);
        if (any(above)) {
            Vec<R> v = exp2<LIFT, R>(norms.q.exponent(y) + norms.q_more) * s;
            Vec<R> rest = log_of<R>((R(1) - s) / (r + s)).log1p();
            of_js = above ? v * (slope - rest) - u * ((R(1) - s) * log1p) : of_js;
            of_h = above ? v - u * (s + log1p) : of_h;
        }
        js += of_js, of_heavy += of_h;
        if (ends<R>(i + LANES<R>, n)) flush(js, of_heavy);
    }
    return {js.total(), of_heavy.total()};
}

#if WIDTH == 64
template <class In, bool EXACT, bool BOTH>
Halves js_by_table(const char* heavy, const char* light, int64_t n, const Norms<float>& norms,
                          const Tables& tables) {
    Sum<float> js, of_heavy;
    for (int64_t i = 0; i < n; i += 32) {
        VF x[2], y[2];
        In::two(heavy + i * SIZES[In::dtype], x[0], x[1]), In::two(light + i * SIZES[In::dtype], y[0], y[1]);
        for (int j = 0; j < 2; j++) {
            const Apart a = Apart::of<EXACT>(x[j], y[j], norms);
            const VF d = smaller(a.d, all<float>(float(FARTHEST)));
            const VF terms = exp2<LIFT, float>(a.log) * (d * d);
            const Place place(d, a.light);
            js.add(terms, place.at(tables.of[MEAN]));
            if (BOTH) of_heavy.add(terms, place.at(tables.of[HEAVY]));
        }
        if (ends<float>(i + 32, n)) flush(js, of_heavy);
    }
    return {js.total(), of_heavy.total()};
}
template <class In>
Halves js_by_table(const char* heavy, const char* light, int64_t n, const Norms<float>& norms,
                          bool exact, const Shared& s) {
    const bool both = s.asks & ASK_HALVES;
    auto loop = exact ? both ? js_by_table<In, true, true> : js_by_table<In, true, false>
                      : both ? js_by_table<In, false, true> : js_by_table<In, false, false>;
    return loop(heavy, light, n, norms, *s.tables);
}
#endif

// --- sums over a row ----------------------------------------------------------------------------

// The loop over blocks of 2^LIFT times sums, exponents counted from the largest logit of the first
// block; where that will not do (it is −inf, or a sum is not finite) they start again from the
// largest of the row, and blocks without any mass are passed over.
// Powers of two that a largest logit may be of: in float32 an exponent's own rounding is 4 there, in
// float64 a log-normaliser is known to 1e-6; beyond, a row has no distribution that can be told
template <class R> constexpr double LARGEST = sizeof(R) == 4 ? 67108864.0 : 8589934592.0;

template <class R> struct Sides {
    const Shared& s;
    Blocks<R> p, q;
    double p_top = -INFINITY, q_top = -INFINITY;
    int64_t p_block = 0;  // where p's largest first is
    bool whole = false;  // whether these are the largest of the whole row
    std::vector<uint8_t> empty;

    Sides(const Row& x, const Row& y, const Shared& shared) : s(shared), p(x), q(y) {}
    int64_t size(int64_t start) const { return std::min(s.vocab - start, BLOCK); }
    void tops(int64_t start) {
        double a = -INFINITY, b = -INFINITY;
        int64_t n = size(start);
        block_tops((const R*)p.get(start, n), filled<R>(n), a);
        if (q.x) block_tops((const R*)q.get(start, n), filled<R>(n), b);
        if (whole) empty[start / BLOCK] = a == -INFINITY && b == -INFINITY;
        if (a > p_top) p_block = start;
        p_top = std::max(p_top, a), q_top = std::max(q_top, b);
    }
    void all_tops() {
        whole = true, empty.assign((s.vocab + BLOCK - 1) / BLOCK, 0);
        p_top = q_top = -INFINITY;
        for (int64_t start = 0; start < s.vocab; start += BLOCK) tops(start);
    }
    bool told(double top) const { return std::isfinite(top) && std::fabs(top * s.per_nat()) < LARGEST<R>; }
    bool usable() const { return told(p_top) && (!q.x || told(q_top)); }
    // Says whether there are anchors to start from
    bool start() {
        // the first block that both sides have tokens in
        for (int64_t at = 0; !whole && at < s.vocab && !(p_top > -INFINITY && (!q.x || q_top > -INFINITY));)
            tops(at), at += BLOCK;
        if (!usable() && !whole) all_tops();
        return usable();
    }
    // Says whether p has a logit in this block that is more than half a power of two above the anchor,
    // and takes the largest for it: the nearer to 0 an exponent is, the more digits it has
    bool higher(int64_t start, Anchor<R>& a, double& powers) {
        double top = -INFINITY;
        const int64_t n = size(start);
        block_tops((const R*)p.get(start, n), filled<R>(n), top);
        if (!(top * double(a.scale) - a.from > 0.5) || !std::isfinite(top)) return false;
        Anchor<R> better(top, s);
        powers = a.from - better.from, a = better;
        return true;
    }
    bool passed(int64_t start) const { return whole && empty[start / BLOCK]; }
};

template <bool MORE, Form FORM, class R>
Totals even_of(Sides<R>& r, int64_t start, const Anchor<R>& a, const Anchor<R>& q_a, R c) {
    const int64_t n = r.size(start), ahead = BLOCK * SIZES[r.p.x.dtype];
#define TRY(In)                                                                            \
    if (r.p.x.dtype == In::dtype && r.q.x.dtype == In::dtype && n % (2 * LANES<R>) == 0)   \
        return even_block<In, MORE, FORM>(r.p.x.byte(start), r.q.x.byte(start), n, a, q_a, c, ahead);
    if constexpr (sizeof(R) == 4 && FORM != EXACT) {
        TRY(Bfloat16)
#if WIDTH == 64
        TRY(Float16)
#endif
    }
#undef TRY
    const char *x = r.p.get(start, n), *y = r.q.get(start, n);
    return even_block<Plain<R>, MORE, FORM>(x, y, filled<R>(n), a, q_a, c, BLOCK * int64_t(sizeof(R)));
}

template <bool LOGS, class R>
Mass side_of(Sides<R>& r, int64_t start, const Anchor<R>& a) {
    const int64_t n = r.size(start);
    const int dtype = r.p.x.dtype;
    if constexpr (sizeof(R) == 4) {
        const char* there = n % (2 * LANES<R>) == 0 ? r.p.x.byte(start) : nullptr;
        if (there && dtype == BFLOAT16)
            return side_block<Bfloat16, LOGS>(there, n, a, BLOCK * 2);
#if WIDTH == 64
        if (there && dtype == FLOAT16) return side_block<Float16, LOGS>(there, n, a, BLOCK * 2);
#endif
    }
    return side_block<Plain<R>, LOGS>(r.p.get(start, n), filled<R>(n), a, BLOCK * sizeof(R));
}

// Writes the largest logit (or one near it), the log-normaliser and the entropy; NaN if there is none
template <bool LOGS, class R>
bool side_sums(const Row& x, const Shared& s, double& top, double& log, double& entropy) {
    Sides<R> r(x, {nullptr, 0}, s);
again:
    bool good = r.start();
    top = r.p_top, log = NONE;
    if (!good) return false;
    Anchor<R> a(r.p_top, s);
    double U = 0.0, T = 0.0;
    for (int64_t start = 0; start < s.vocab; start += BLOCK) {
        if (r.passed(start)) continue;
        Mass found = side_of<LOGS>(r, start, a);
        double powers;
        if (found.sum > MUCH && std::isfinite(found.sum) && r.higher(start, a, powers)) {
            T = std::exp2(powers) * (T + powers * U), U *= std::exp2(powers);
            found = side_of<LOGS>(r, start, a);
        }
        U += found.sum, T += found.log;
    }
    if (!std::isfinite(U)) {
        if (r.whole) return false;
        r.all_tops();
        goto again;
    }
    const double lift = 1.0 / double(int64_t(1) << LIFT);
    top = double(a.logit), log = a.log(U * lift);
    if (LOGS) entropy = std::max(std::log(U * lift) - LN2 * T / U, 0.0);
    return true;
}

// c from the normalisers of both sides
template <class R> bool log_ratio(Sides<R>& r, double& log_c) {
    double p_log, q_log, none;
    if (!side_sums<false, R>(r.p.x, r.s, r.p_top, p_log, none)) return false;
    if (!side_sums<false, R>(r.q.x, r.s, r.q_top, q_log, none)) return false;
    log_c = (r.q_top - r.p_top) * double(R(r.s.per_nat())) + (q_log - p_log) / LN2;
    return true;
}

const double NEAR = 1e-3;  // Σ v below it times Σ u is not known well from their difference
const double MOVED = 30.0;  // nats, well within the range of sums
const double ROUGH = 4.0;  // times A: what A may have been with the c of their time, of 3e-7 of it
const double FAR = 8.0;  // nats; logs of a side this far from the other need exponents of its own
// Where the square of the mean difference of logits, over the temperature, is above it times the
// divergence (at most 1 nat), their rounding would cost more than 1.5e-7 of it: an rms of 0.29 units
// in the last place, times √(2 KL) of log-ratios
const double APART = 12.0;
const double SURELY = 0.25;  // that a first block is above it by: it may have few tokens

// False: no distribution on one side or the other, or none that can be told
template <bool MORE, class R> bool pair_sums(Sides<R>& r, double* out) {
    const Shared& s = r.s;
    const bool half = s.half(r.p.x.dtype) && s.half(r.q.x.dtype);  // differences are exact
    bool holes = false, settled = false, exact = false;
    bool alone = false;  // whether c is what the normalisers, each found by itself, say
    double log_c = 0.0;
    auto apart = [&](const Totals& sum, double c_of_sum, double by) {
        const double kl = std::min(std::max(sum.excess() / sum.p_all(), 0.0), 1.0);
        const double difference = sum.U > 0.0 ? c_of_sum * LN2 + (sum.B - sum.A) / sum.U : 0.0;
        return !exact && !half && difference * difference > APART * kl + by;
    };
again:
    if (!r.start()) return false;
    Anchor<R> a(r.p_top, s), q_a(r.q_top, s);
    if (!settled) log_c = q_a.from - a.from;
    Totals all_of;
    for (int64_t start = 0; start < s.vocab; start += BLOCK) {
        if (r.passed(start)) continue;
        bool raised = false;
        for (int moves = 0;;) {
            const R c = from_powers(log_c, a.scale);
            const double now = in_powers(c, a.scale);
            Totals found;
            Form form = MORE && settled ? ANY : exact ? EXACT : holes ? HOLES : EVEN;
            if (form == EVEN) {
                found = even_of<MORE, EVEN>(r, start, a, q_a, c);
                if (!found.finite()) form = HOLES;
            }
            if (form == HOLES) found = even_of<MORE, HOLES>(r, start, a, q_a, c);
            if (form == EXACT) found = even_of<MORE, EXACT>(r, start, a, q_a, c);
            if (form != EVEN && !found.finite()) form = ANY;
            if (form == ANY) {
                int64_t n = r.size(start);
                const R *x = (const R*)r.p.get(start, n), *y = (const R*)r.q.get(start, n);
                Norms<R> norms{a, q_a, R(1), R(q_a.from - a.from - now), c, R(0)};
                found = any_block<R, MORE>(x, y, filled<R>(n), norms);
                if (!found.finite()) {
                    if (r.whole) return false;
                    r.all_tops();
                    goto again;
                }
            }
            holes = found.p_alone + found.q_alone > 0;  // so will the next block be
            double powers;
            if (!raised && found.p_all() > MUCH && r.higher(start, a, powers)) {
                raised = true;
                all_of.raise(powers);
                continue;
            }
            Totals sum = all_of;
            sum.add(found);
            if (!settled && !sum.near()) {
                const bool told = sum.U + sum.B > NEAR * sum.U, begun = all_of.U > 0.0;
                // where Σ v is not told, to the mean of the log-ratios: there it is at least Σ u
                const double off = told ? sum.off() : (sum.B - sum.A) / sum.U;
                if (told ? MORE && begun && std::fabs(off) > 1.0 : moves > 1 || !(std::fabs(off) < MOVED)) {
                    if (!log_ratio(r, log_c)) return false;  // no use: find c first
                    settled = true;
                    goto again;
                }
                const double better = in_powers(from_powers(now + off / LN2, a.scale), a.scale);
                const double shift = (better - now) * LN2;
                Totals better_sum = sum;
                better_sum.move(shift), log_c = better;
                if ((sum.A > 2.0 * better_sum.A || !told) && moves++ < 2) {
                    all_of.move(shift);  // so far that A would lose digits: once more
                    continue;
                }
                sum = better_sum;
            }
            all_of = sum;
            break;
        }
        if (start == 0 && apart(all_of, log_c, SURELY)) {
            exact = true;
            goto again;
        }
    }
    if (!(all_of.p_all() > 0.0)) return false;
    // Σ v is Σ u and what B adds, which is off by some digits of A: where that is large, by itself
    if (!alone && !(all_of.q_all() > 0.0 && all_of.excess() <= FAR * all_of.p_all())) {
        if (!log_ratio(r, log_c)) return false;
        settled = alone = true;
        goto again;
    }
    const double shift = alone ? 0.0 : all_of.off_whole();
    all_of.move(shift);
    const double P = all_of.p_all(), Q = alone ? P : all_of.q_all(), lift = 1.0 / double(int64_t(1) << LIFT);
    if (!(P > 0.0 && Q > 0.0)) return false;
    const double kl = std::max(all_of.excess() / P, 0.0);
    const double back = std::max((all_of.back + all_of.p_lost) / Q, 0.0);
    if (!settled && (all_of.A_rough > ROUGH * all_of.excess() || (MORE && std::max(kl, back) > FAR))) {
        settled = true;
        goto again;
    }
    if (apart(all_of, log_c + shift / LN2, 0.0)) {
        exact = true;
        goto again;
    }
    out[P_MAX] = double(a.logit), out[Q_MAX] = double(q_a.logit);
    out[P_LOG] = a.log(P * lift);
    out[Q_LOG] = q_a.log(Q * lift) + LN2 * (log_c - (q_a.from - a.from)) + shift;
    out[KL] = kl, out[REVERSE_KL] = back;
    out[P_LOST] = all_of.p_lost / P, out[Q_LOST] = all_of.q_lost / Q;
    out[P_ALONE] = all_of.p_alone, out[Q_ALONE] = all_of.q_alone;
    if (MORE) {
        out[P_ENTROPY] = std::max(std::log(P * lift) - LN2 * all_of.p_log / P, 0.0);
        out[Q_ENTROPY] = std::max(std::log(Q * lift) - LN2 * all_of.q_log / all_of.v_sum, 0.0);
    }
    out[NOTE] = all_of.p_alone + all_of.q_alone > 0;
    return true;
}

// turned: of q and p
template <class R> Norms<R> norms(const double* sums, const Shared& s, bool turned = false) {
    const int P_MAX = turned ? ::Q_MAX : ::P_MAX, P_LOG = turned ? ::Q_LOG : ::P_LOG;
    const int Q_MAX = turned ? ::P_MAX : ::Q_MAX, Q_LOG = turned ? ::P_LOG : ::Q_LOG;
    Norms<R> n{Anchor<R>(0, s), Anchor<R>(0, s), 1, 0, 0, 0};
    auto from = [&](Anchor<R>& a, int top, int log) {  // log2 of the norm, in powers and one remainder
        double norm = sums[top] * double(a.scale) + sums[log] / LN2;
        a.logit = R(norm / double(a.scale)), a.at = R(norm);
        a.from = WIDTH == 16 ? double(a.logit) * double(a.scale) : double(a.at);
        return norm;
    };
    double p = from(n.p, P_MAX, P_LOG), q = from(n.q, Q_MAX, Q_LOG);
    double p_rest = n.p.from - p, q_rest = n.q.from - q;
    n.p_times = R(std::exp2(p_rest)), n.q_more = R(q_rest - p_rest);
    double c = (sums[Q_MAX] - sums[P_MAX]) * double(n.p.scale) + (sums[Q_LOG] - sums[P_LOG]) / LN2;
    n.c = from_powers(c, n.p.scale), n.c_more = R(c - in_powers(n.c, n.p.scale));
    return n;
}

// Of a block by tables where there are some, else by `js_block`
template <class R>
Halves js_of(Sides<R>& r, int64_t start, const Norms<R>& norms, R s, bool exact) {
    const int64_t n = r.size(start);
    auto sides = [&](const void* x, const void* y) {  // the one of the larger weight first
        return r.s.beta < 0.5 ? std::make_pair((const char*)y, (const char*)x)
                              : std::make_pair((const char*)x, (const char*)y);
    };
#if WIDTH == 64
    if constexpr (sizeof(R) == 4) {
        const int dtype = r.p.x.dtype;
        if (r.s.tables && dtype == r.q.x.dtype && n % 32 == 0 && r.s.half(dtype)) {
            const auto there = sides(r.p.x.byte(start), r.q.x.byte(start));
            auto loop = dtype == BFLOAT16 ? js_by_table<Bfloat16> : js_by_table<Float16>;
            return loop(there.first, there.second, n, norms, false, r.s);
        }
    }
#endif
    const auto read = sides(r.p.get(start, n), r.q.get(start, n));
#if WIDTH == 64
    if constexpr (sizeof(R) == 4)
        if (r.s.tables)
            return js_by_table<Plain<float>>(read.first, read.second, filled<R>(n), norms, exact, r.s);
#endif
    (void)exact;
    return js_block<R>((const R*)read.first, (const R*)read.second, filled<R>(n), norms, s);
}

template <class R> void js_sums(Sides<R>& r, double* out) {
    const bool flipped = r.s.beta < 0.5;  // q is the one of the larger weight
    const bool half = r.s.half(r.p.x.dtype) && r.s.half(r.q.x.dtype);
    const Norms<R> n = norms<R>(out, r.s, flipped);
    const R light = R(flipped ? r.s.beta : 1.0 - r.s.beta);
    const double s = double(light), times = double(n.p_times) / double(int64_t(1) << LIFT);
    double js = 0.0, heavy = 0.0;
    for (bool exact : {false, true}) {
        js = heavy = 0.0;
        for (int64_t start = 0; start < r.s.vocab; start += BLOCK) {
            const Halves found = js_of(r, start, n, light, exact);
            js += found.js, heavy += found.heavy;
        }
        js = std::max(js * times, 0.0), heavy = std::max(heavy * times, 0.0);
        // js is about s (1 − s) KL where that is small
        const double kl = std::min(js / (s * (1.0 - s)), 1.0);
        if (half || !r.s.tables || std::pow(in_powers(n.c, n.p.scale) * LN2, 2) <= APART * kl) break;
    }
    if (!(r.s.asks & ASK_HALVES)) heavy = js;
    out[flipped ? JS_Q : JS_P] = heavy;
    out[flipped ? JS_P : JS_Q] = (js - (1.0 - s) * heavy) / s;  // their weighted sum is js
}

template <class R> void first_top(const Row& x, const Shared& s, double& top, double& log, double& id) {
    Sides<R> r(x, {nullptr, 0}, s);
    r.all_tops();
    const int64_t n = r.size(r.p_block);
    const R* v = (const R*)r.p.get(r.p_block, n);
    id = double(r.p_block + (std::find(v, v + n, R(r.p_top)) - v));
    log += (top - r.p_top) / s.temperature, top = r.p_top;
}

template <class R> void row_sums(const Row& p, const Row& q, const Shared& s, double* out) {
    std::fill(out, out + SUMS, 0.0);
    if (!q) {
        bool good = s.asks & ASK_ENTROPY
            ? side_sums<true, R>(p, s, out[P_MAX], out[P_LOG], out[P_ENTROPY])
            : side_sums<false, R>(p, s, out[P_MAX], out[P_LOG], out[P_ENTROPY]);
        if (!good) std::fill(out + P_ENTROPY, out + SUMS, NONE);
        return;
    }
    Sides<R> r(p, q, s);
    bool good = s.asks & ASK_MORE ? pair_sums<true>(r, out)
              : s.asks & ASK_KL ? pair_sums<false>(r, out) : false;
    if (!(s.asks & (ASK_MORE | ASK_KL)) || !good) {
        double none;
        good = side_sums<false, R>(p, s, out[P_MAX], out[P_LOG], none);
        good &= side_sums<false, R>(q, s, out[Q_MAX], out[Q_LOG], none);
        if (s.asks & (ASK_MORE | ASK_KL)) good = false;
    }
    if (!good) {
        std::fill(out + P_ENTROPY, out + SUMS, NONE);
        return;
    }
    if (s.asks & ASK_JS) js_sums(r, out);
    if (s.asks & ASK_TOP) {
        first_top<R>(p, s, out[P_MAX], out[P_LOG], out[P_TOP]);
        first_top<R>(q, s, out[Q_MAX], out[Q_LOG], out[Q_TOP]);
    }
}

// --- slopes -------------------------------------------------------------------------------------

template <class R> struct Weights {  // the coefficients of one row and side
    R one, ratio, log, mix, step, at;
    explicit Weights(const double* c)
        : one(R(c[ONE])), ratio(R(c[RATIO])), log(R(c[LOG])), mix(R(c[MIX])), step(R(c[STEP])),
          at(R(c[AT])) {}
};

// As `even_block`; returns the largest |l|, beyond LIMIT of which `any_slopes` has to do it. w is the
// probability of p, and of q where p lacks the token. STEPS: of gradients to q that are q − p times a
// number, those of KL(p‖q), and none to p.
template <class In, bool LOGS, bool HOLES, bool STEPS, class R = typename In::Real>
R even_slopes(const char* p, const char* q, int64_t n, const Norms<R>& norms, const Weights<R>& cp,
              const Weights<R>& cq, char* gp, char* gq, int64_t ahead, bool past) {
    const int64_t size = SIZES[In::dtype];
    const R q_times = R(double(norms.p_times) * std::exp2(double(norms.q_more)));
    Vec<R> most{};
    for (int64_t i = 0; i < n; i += 2 * LANES<R>) {
        const char *at_p = p + i * size, *at_q = q + i * size;
        for (int64_t line = 0; line < 2 * LANES<R> * size; line += 64)
            prefetch(at_p + ahead + line), prefetch(at_q + ahead + line);
        Vec<R> x[2], y[2], P[2], Q[2];
        In::two(at_p, x[0], x[1]), In::two(at_q, y[0], y[1]);
        for (int j = 0; j < 2; j++) {
            const Bits<R> p_lacks = HOLES ? lacks(x[j]) : Bits<R>{}, q_lacks = HOLES ? lacks(y[j]) : Bits<R>{};
            const Bits<R> both = ~(p_lacks | q_lacks);
            Vec<R> log, d, times = all<R>(norms.p_times);
            if (HOLES) {
                log = norms.p.exponent(where(p_lacks, y[j], x[j]), p_lacks, norms.q);
                d = y[j] - x[j], times = where(p_lacks, all<R>(q_times), times);
            } else {
                log = norms.p.exponent(x[j]), d = x[j] == y[j] ? Vec<R>{} : y[j] - x[j];
            }
            Vec<R> w = exp2<0, R>(log) * times;
            Vec<R> l = ratio(d, norms.p.scale, norms.c) - norms.c_more;
            if (HOLES) l = kept(both, l);
            most = bigger(most, l > R(0) ? l : -l);
            Vec<R> change = power<R, true>(l).less_one(), step = w * change, v = w + step, line = l * R(LN2);
            if (STEPS) {
                Q[j] = step * cq.step;
                continue;
            }
            if (HOLES) step = w * where(q_lacks, all<R>(R(-1)), where(p_lacks, all<R>(R(1)), change));
            P[j] = w * fma(line, all<R>(cp.ratio), all<R>(cp.one));
            Q[j] = v * fma(line, all<R>(cq.ratio), all<R>(cq.one));
            if (LOGS) {
                if (HOLES) log = plus(log, p_lacks, all<R>(norms.q_more));
                log = R(LN2) * bigger(log, all<R>(R(-1100)));
                P[j] += w * (cp.log * log), Q[j] += v * (cq.log * (log + line));
            }
            P[j] = fma(step, all<R>(cp.step), P[j]), Q[j] = fma(step, all<R>(cq.step), Q[j]);
            if (HOLES) P[j] = kept(Bits<R>(~p_lacks), P[j]), Q[j] = kept(Bits<R>(~q_lacks), Q[j]);
        }
        if (gp && !STEPS) In::put_two(gp + i * size, P[0], P[1], past);
        if (gq) In::put_two(gq + i * size, Q[0], Q[1], past);
    }
    return largest<R>(most);
}

#if WIDTH == 64
// The gradients of JS alone: of each side, its probability times (one + mix log m/itself)
void js_slopes(const float* heavy, const float* light, int64_t n, const Norms<float>& norms,
               const Tables& tables, const Weights<float>& ch, const Weights<float>& cl, float* gh, float* gl) {
    const float ln2 = float(LN2);
    for (int64_t i = 0; i < n; i += 16) {
        const Apart a = Apart::of<true>(load(heavy + i), load(light + i), norms);
        const VF d = smaller(a.d, all<float>(float(FARTHEST)));
        const VF larger = d * Place(d, a.light).at(tables.of[LARGER]), smaller = fma(a.d, all<float>(ln2), larger);
        const VF most = exp2<0, float>(a.log) * norms.p_times, least = most * exp2<0, float>(-a.d);
        const VF H = where(a.light, least, most), L = where(a.light, most, least);
        const VF h = where(a.light, smaller, larger), l = where(a.light, larger, smaller);
        if (gh) store(gh + i, H * fma(h, all<float>(ch.mix), all<float>(ch.one)));
        if (gl) store(gl + i, L * fma(l, all<float>(cl.mix), all<float>(cl.one)));
    }
}
#endif

template <bool MIXED, class R>
void any_slopes(const R* p, const R* q, int64_t n, const Norms<R>& norms, R beta,
                const Weights<R>& cp, const Weights<R>& cq, R* gp, R* gq) {
    const R ln2 = R(LN2);
    for (int64_t i = 0; i < n; i += LANES<R>) {
        Token<R> t = token<R>(load(p + i), load(q + i), norms);
        Vec<R> none{}, W = t.W * norms.p_times, lesser = fma(W, t.less_one, W), gap = t.d * ln2;
        Vec<R> u = t.swapped ? lesser : W, v = t.swapped ? W : lesser, step = t.step() * norms.p_times;
        Vec<R> line = t.p_only | t.q_only ? none : t.swapped ? gap : -gap;
        Vec<R> large = t.log * ln2, small = bigger(large - gap, all<R>(R(-1100)));
        Vec<R> P = fma(line, all<R>(cp.ratio), all<R>(cp.one)) + cp.log * (t.swapped ? small : large);
        Vec<R> Q = fma(line, all<R>(cq.ratio), all<R>(cq.one)) + cq.log * (t.swapped ? large : small);
        if (MIXED) {
            Vec<R> other = t.swapped ? all<R>(beta) : all<R>(R(1) - beta);
            Vec<R> mine = log_of<R>(other * t.less_one).log1p(), others = mine + gap;  // log m/W, …
            P += cp.mix * (t.swapped ? others : mine), Q += cq.mix * (t.swapped ? mine : others);
        }
        if (gp) store(gp + i, t.q_only ? none : u * P + step * cp.step);
        if (gq) store(gq + i, t.p_only ? none : v * Q + step * cq.step);
    }
}

template <class R>
void side_slopes(const R* p, int64_t n, const Norms<R>& norms, const Weights<R>& c, R* gp) {
    for (int64_t i = 0; i < n; i += LANES<R>) {
        Vec<R> log = bigger(all<R>(R(-1100)), norms.p.exponent(load(p + i)));
        Vec<R> u = exp2<0, R>(log) * norms.p_times;
        store(gp + i, u * fma(log, all<R>(R(LN2) * c.log), all<R>(c.one)));
    }
}

struct Out {  // where a row's gradients go; null: not wanted
    char *p, *q;
    int p_dtype, q_dtype;
    bool past;  // whether they are written past the caches
};

template <class R> struct RowSlopes {
    Sides<R> r;
    const Norms<R> known, turned;  // of q and p
    const Weights<R> cp, cq;
    int64_t id;
    const Out& out;
    const bool holes;  // there are tokens that one side lacks
    bool far = false;
    alignas(64) R p_room[BLOCK];
    alignas(64) R q_room[BLOCK];

    RowSlopes(const Row& p, const Row& q, const Shared& s, const double* sums, const double* c,
              int64_t at, const Out& o)
        : r(p, q, s), known(norms<R>(sums, s)), turned(norms<R>(sums, s, true)), cp(c), cq(c + SIDE), id(at), out(o),
          holes(sums[NOTE] != 0) {}

    template <class In>
    bool even(const char* x, const char* y, int64_t n, char* gp, char* gq, int64_t ahead, bool past) {
        const bool logs = r.s.asks & ASK_ENTROPY, steps = !gp && cq.one == 0 && cq.ratio == 0;
        auto loop = holes ? logs ? even_slopes<In, true, true, false> : even_slopes<In, false, true, false>
                  : logs  ? even_slopes<In, true, false, false>
                  : steps ? even_slopes<In, false, false, true> : even_slopes<In, false, false, false>;
        return double(loop(x, y, n, known, cp, cq, gp, gq, ahead, past)) < LIMIT;
    }
    void js(const R* x, const R* y, int64_t n, R* gp, R* gq) {
#if WIDTH == 64
        auto only = [](const Weights<R>& c) { return c.ratio == 0 && c.log == 0 && c.step == 0; };
        if constexpr (sizeof(R) == 4)
            if (r.s.tables && only(cp) && only(cq)) {
                if (r.s.beta < 0.5) js_slopes(y, x, n, turned, *r.s.tables, cq, cp, gq, gp);
                else js_slopes(x, y, n, known, *r.s.tables, cp, cq, gp, gq);
                return;
            }
#endif
        any_slopes<true>(x, y, n, known, R(r.s.beta), cp, cq, gp, gq);
    }
    // In place, if both sides and their gradients are of one dtype that a loop reads and writes
    template <class In> bool there(int64_t start, int64_t size) {
        if (r.p.x.dtype != In::dtype || r.q.x.dtype != In::dtype || size % (2 * LANES<R>)) return false;
        const int64_t bytes = SIZES[In::dtype], from = start * bytes;
        char *gp = out.p ? out.p + from : nullptr, *gq = out.q ? out.q + from : nullptr;
        const bool past = out.past && (uintptr_t(gp) | uintptr_t(gq)) % WIDTH == 0;
        return even<In>(r.p.x.byte(start), r.q.x.byte(start), size, gp, gq, BLOCK * bytes, past);
    }
    void block(int64_t start) {
        const int64_t size = r.size(start), full = filled<R>(size);
        const bool has_id = id >= start && id < start + size;
        if (r.q.x && !has_id && !far && !(r.s.asks & ASK_JS)) {
            if constexpr (sizeof(R) == 4) {
                if (there<Bfloat16>(start, size)) return;
#if WIDTH == 64
                if (there<Float16>(start, size)) return;
#endif
            }
            if (there<Plain<R>>(start, size)) return;
        }
        const R* x = (const R*)r.p.get(start, size);
        const R* y = r.q.x ? (const R*)r.q.get(start, size) : nullptr;
        R *gp = out.p ? p_room : nullptr, *gq = out.q ? q_room : nullptr;
        if (!y) {
            side_slopes(x, full, known, cp, gp);
        } else if (r.s.asks & ASK_JS) {
            js(x, y, full, gp, gq);
        } else if (far || !even<Plain<R>>((const char*)x, (const char*)y, full, (char*)gp, (char*)gq, 0, false)) {
            far = true;
            any_slopes<false>(x, y, full, known, R(r.s.beta), cp, cq, gp, gq);
        }
        if (has_id && gp && x[id - start] > -INFINITY) p_room[id - start] += cp.at;
        if (has_id && gq && y[id - start] > -INFINITY) q_room[id - start] += cq.at;
        if (gp) write(p_room, size, out.p_dtype, out.p + start * SIZES[out.p_dtype]);
        if (gq) write(q_room, size, out.q_dtype, out.q + start * SIZES[out.q_dtype]);
    }
};

void fill_row(char* x, int dtype, int64_t n, float number) {
    const std::vector<float> row(x ? size_t(n) : 0, number);
    if (x) write(row.data(), n, dtype, x);
}

template <class R>
void row_slopes(const Row& p, const Row& q, const Shared& s, const double* sums, const double* c,
                int64_t id, const Out& out) {
    if (std::isnan(sums[P_LOG]) || (q && std::isnan(sums[Q_LOG]))) {
        fill_row(out.p, out.p_dtype, s.vocab, float(NONE));
        fill_row(out.q, out.q_dtype, s.vocab, float(NONE));
        return;
    }
    RowSlopes<R> row(p, q, s, sums, c, id, out);
    for (int64_t start = 0; start < s.vocab; start += BLOCK) row.block(start);
#if WIDTH >= 32
    _mm_sfence();  // what was written past the caches, before any other thread is told
#endif
}

// --- rounding -----------------------------------------------------------------------------------

// Σ p (1 − p) 4^e over a row, 2^e the power of two at or below |logit| (½ for 0): 24 τ² / ε² times
// the divergence that rounding to a dtype of precision ε makes
double row_rounding(const Row& x, const Shared& s, const double* sums) {
    double known[SUMS] = {};
    known[P_MAX] = known[Q_MAX] = sums[0], known[P_LOG] = known[Q_LOG] = sums[1];
    const Norms<float> n = norms<float>(known, s);
    Sides<float> r(x, {nullptr, 0}, s);
    double sum = 0.0;
    for (int64_t start = 0; start < s.vocab; start += BLOCK) {
        const int64_t size = r.size(start);
        const float* at = (const float*)r.p.get(start, size);
        VF part{};
        for (int64_t i = 0; i < filled<float>(size); i += LANES<float>) {
            VF v = load(at + i), p = exp2<0, float, true>(n.p.exponent(v)) * n.p_times;
            VF e = (VF)((MF)v & 0x7f800000);
            e = v == 0.0f ? all<float>(0.5f) : p > 0.0f ? e : VF{};
            part = fma(p - p * p, e * e, part);
        }
        sum += total<float>(part);
    }
    return sum;
}

// --- rows on all cores --------------------------------------------------------------------------

// Rows in turn to whoever is free, some at a time
template <class Work> void each_row(int64_t n, int64_t vocab, int threads, Work row) {
    const int64_t step = std::max<int64_t>(1, 65536 / vocab);
    const int64_t worth = n * vocab / 300000 + 1;  // a thread costs as much as this many logits
    std::atomic<int64_t> next(0);
    auto work = [&] {
        for (int64_t start; (start = next.fetch_add(step)) < n;)
            for (int64_t i = start; i < std::min(n, start + step); i++) row(i);
    };
    std::vector<std::thread> others;
    try {
        for (int64_t i = 1; i < std::min<int64_t>({threads, (n + step - 1) / step, worth}); i++)
            others.emplace_back(work);
    } catch (const std::system_error&) {  // no more threads to be had: do with these
    }
    work();
    for (auto& other : others) other.join();
}

// Tokens up to which a row is summed in float64 whatever its dtype: errors of few terms do not average
// out (1e-6 of KL), and the time is that of the call
#ifndef FEW
const int64_t FEW = 128;
#endif

// Powers of two of a largest logit from which its row is summed in float64: in float32 exponents are
// rounded by 2^-24 of it there, and with them the log-probabilities that gradients hold
const double LARGE = 1024.0;

struct Call {  // the same in native.py
    const void *p, *q;
    int64_t p_stride, q_stride;  // bytes
    const int64_t* ids;
    const uint8_t* keep;
    int64_t rows, vocab;
    double temperature, beta;
    int32_t p_dtype, q_dtype, asks, threads;

    Row p_row(int64_t i) const { return {(const char*)p + i * p_stride, p_dtype}; }
    Row q_row(int64_t i) const { return {q ? (const char*)q + i * q_stride : nullptr, q_dtype}; }
    Shared shared() const { return {vocab, temperature, beta, asks}; }
    std::shared_ptr<const Tables> tables() const {
#if WIDTH == 64
        if (asks & ASK_JS && !doubles()) return Tables::find(beta);
#endif
        return nullptr;
    }
    bool wide() const { return p_dtype == FLOAT64 || (q && q_dtype == FLOAT64); }
    bool doubles() const { return wide() || vocab <= FEW; }
    // Whether a row's largest logits are finite and one is LARGE
    bool large(double p_top, double q_top) const {
        const double most = std::max(std::fabs(p_top), std::fabs(q_top)) * shared().per_nat();
        return std::isfinite(most) && most > LARGE;
    }
};

struct Slopes {
    const double *sums, *coefficients;
    char *grad_p, *grad_q;
    int64_t p_stride, q_stride;
};

// Ask for large pages before a fresh gradient is first written to, which otherwise costs several
// times what the arithmetic does; a hint that systems without them ignore.
void prefer_large_pages(void* start, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    const uintptr_t page = 4096, first = (uintptr_t(start) + page - 1) / page * page;
    const int64_t left = int64_t(uintptr_t(start) + bytes) - int64_t(first);
    if (start && left > (int64_t(1) << 22)) madvise((void*)first, left, MADV_HUGEPAGE);
#else
    (void)start, (void)bytes;
#endif
}

}  // namespace

extern "C" void kullback_sums(const Call* call, double* out) {
    Shared s = call->shared();
    const std::shared_ptr<const Tables> tables = call->tables();
    s.tables = tables.get();
    each_row(call->rows, call->vocab, call->threads, [&](int64_t i) {
        if (call->keep && !call->keep[i]) return;
        double found[SUMS];
        if (!call->doubles()) row_sums<float>(call->p_row(i), call->q_row(i), s, found);
        if (call->doubles() || call->large(found[P_MAX], found[Q_MAX]))
            row_sums<double>(call->p_row(i), call->q_row(i), call->shared(), found);
        for (int each = 0; each < SUMS; each++) out[each * call->rows + i] = found[each];
    });
}

// sums: the largest logit of each row, then the log-normaliser of each
extern "C" void kullback_rounding(const Call* call, const double* sums, double* out) {
    const Shared s = call->shared();
    each_row(call->rows, call->vocab, call->threads, [&](int64_t i) {
        if (call->keep && !call->keep[i]) return;
        const double known[] = {sums[i], sums[call->rows + i]};
        out[i] = row_rounding(call->p_row(i), s, known);
    });
}

extern "C" void kullback_slopes(const Call* call, const Slopes* out) {
    const int64_t p_bytes = call->vocab * SIZES[call->p_dtype], q_bytes = call->vocab * SIZES[call->q_dtype];
    prefer_large_pages(out->grad_p, call->rows * p_bytes);
    prefer_large_pages(out->grad_q, call->rows * q_bytes);
    const int64_t most = call->rows * std::max(out->grad_p ? p_bytes : 0, out->grad_q ? q_bytes : 0);
    Shared s = call->shared();
    const std::shared_ptr<const Tables> tables = call->tables();
    s.tables = tables.get();
    each_row(call->rows, call->vocab, call->threads, [&](int64_t i) {
        Out to{out->grad_p ? out->grad_p + i * out->p_stride : nullptr,
               out->grad_q ? out->grad_q + i * out->q_stride : nullptr, call->p_dtype, call->q_dtype,
               most >= PAST_CACHES};
        if (call->keep && !call->keep[i]) {
            if (to.p) std::memset(to.p, 0, p_bytes);
            if (to.q) std::memset(to.q, 0, q_bytes);
            return;
        }
        double found[SUMS], c[2 * SIDE];
        for (int each = 0; each < SUMS; each++) found[each] = out->sums[each * call->rows + i];
        for (int each = 0; each < 2 * SIDE; each++) c[each] = out->coefficients[each * call->rows + i];
        const int64_t id = call->ids ? call->ids[i] : -1;
        if (call->doubles() || call->large(found[P_MAX], found[Q_MAX]))
            row_slopes<double>(call->p_row(i), call->q_row(i), call->shared(), found, c, id, to);
        else row_slopes<float>(call->p_row(i), call->q_row(i), s, found, c, id, to);
    });
}

// The gradients of what `kullback_kl` returned, by its sums; grads: those of the values, as they are
extern "C" void kullback_kl_slopes(const void* p, const void* q, int64_t rows, int64_t vocab,
                                   double temperature, int p_dtype, int q_dtype, int threads,
                                   const double* sums, const void* grads, void* grad_p, void* grad_q) {
    Call call{};
    call.p = p, call.q = q, call.rows = rows, call.vocab = vocab, call.temperature = temperature;
    call.p_stride = vocab * SIZES[p_dtype], call.q_stride = vocab * SIZES[q_dtype];
    call.p_dtype = p_dtype, call.q_dtype = q_dtype, call.threads = threads;
    std::vector<double> c(size_t(2 * SIDE * rows), 0.0);  // as `coefficients` in interface.py
    for (int64_t i = 0; i < rows; i++) {
        const double g = (call.wide() ? ((const double*)grads)[i] : ((const float*)grads)[i]) / temperature;
        const double kl = sums[KL * rows + i], lost = sums[P_LOST * rows + i];
        c[RATIO * rows + i] = -g, c[ONE * rows + i] = -g * (kl - lost);
        c[(SIDE + STEP) * rows + i] = g, c[(SIDE + ONE) * rows + i] = -g * lost;
    }
    const Slopes out{sums, c.data(), (char*)grad_p, (char*)grad_q, call.p_stride, call.q_stride};
    kullback_slopes(&call, &out);
}

// KL(p‖q) of contiguous rows, as `values` in interface.py has it, in float64 where a side is, else in
// float32. Returns a set of bits: 1 if a row has none or the first numbers of a side look like
// probabilities, 2 if rounding may matter, by the bound of `_may_matter` in rounding.py: p_step and
// q_step are ε² / 24 over the share that matters, 0 for sides that are not of half precision.
extern "C" int kullback_kl(const void* p, const void* q, int64_t rows, int64_t vocab,
                           double temperature, int p_dtype, int q_dtype, int threads,
                           double p_step, double q_step, double* sums, void* values) {
    Call call{};
    call.p = p, call.q = q, call.rows = rows, call.vocab = vocab, call.temperature = temperature;
    call.p_stride = vocab * SIZES[p_dtype], call.q_stride = vocab * SIZES[q_dtype];
    call.p_dtype = p_dtype, call.q_dtype = q_dtype, call.asks = ASK_KL, call.threads = threads;
    for (const Row& x : {call.p_row(0), call.q_row(0)}) {
        double first[8];
        const int64_t n = std::min<int64_t>(8, vocab);
        read<double>(x, 0, n, first);
        if (std::all_of(first, first + n, [](double v) { return v >= 0.0 && v <= 2.0; })) return 1;
    }
    kullback_sums(&call, sums);
    int status = 0;
    for (int64_t i = 0; i < rows; i++) {
        auto square = [&](int top, int log) {  // of logits, over the temperature, on average
            const double all = sums[top * rows + i] / temperature + sums[log * rows + i];
            const double most = std::log(double(vocab) + std::exp(1.0));
            return all * all + most * most - std::min(2.0 * all * most, 0.0);
        };
        double value = sums[KL * rows + i], by_p = square(P_MAX, P_LOG), by_q = square(Q_MAX, Q_LOG);
        status |= std::isnan(value);
        if (sums[P_ALONE * rows + i] > 0) value = INFINITY;
        if (value > 0 && p_step * by_p + q_step * by_q > value) status |= 2;
        if (call.wide()) ((double*)values)[i] = value;
        else ((float*)values)[i] = float(value);
    }
    return status;
}
