// The sums and slopes of `task`, one row at a time, on all cores. Compiled at first use by
// native.py, which also documents the arguments; the tests hold it to the chunked backend.
//
// Loops are plain, for the compiler to vectorise: no infinities are assumed away, so no -ffast-math.
// Elements are float32, partial sums of a block of 2048 too, and everything above that is double.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <system_error>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

// helpers of the hot loops, which are only vectorised when nothing in them is a call
#define INLINE inline __attribute__((always_inline))

namespace {

const int64_t BLOCK = 2048;
const float INF = std::numeric_limits<float>::infinity();
const float LARGE = 1e30f;  // logarithms end here, lest those of finite masks overflow
const double NONE = std::numeric_limits<double>::quiet_NaN();

// the order of Sum and of Slope in task.py
enum { P_MAX, P_LOG, Q_MAX, Q_LOG, P_ENTROPY, Q_ENTROPY, KL, REVERSE_KL, P_ALONE, Q_ALONE,
       P_LOST, Q_LOST, JS_P, JS_Q, P_TOP, Q_TOP, P_AT, Q_AT, NOTE, SUMS };
enum { ONE, RATIO, LOG, MIX, STEP, AT, SIDE };

// what is asked of a call, a set of bits
enum { ASK_KL = 1, ASK_MORE = 2, ASK_JS = 4, ASK_TOP = 8 };

INLINE float bits_to_float(uint32_t bits) { float x; std::memcpy(&x, &bits, 4); return x; }
INLINE uint32_t float_to_bits(float x) { uint32_t bits; std::memcpy(&bits, &x, 4); return bits; }

struct bfloat16 { uint16_t bits; };
INLINE float wide(float x) { return x; }
INLINE float wide(bfloat16 x) { return bits_to_float(uint32_t(x.bits) << 16); }
INLINE void put(float x, float& out) { out = x; }
INLINE void put(float x, bfloat16& out) {  // to nearest, ties to even
    uint32_t bits = float_to_bits(x);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    out.bits = x != x ? 0x7fc0 : rounded;
}

// e^x for x ≤ 0, below 1e-37 it is 0: 2^k e^r, |r| ≤ log(2)/2, minimax of degree 6
INLINE float exp_down(float x) {
    float clipped = x < -86.0f ? -86.0f : x;
    float shifted = clipped * 1.44269504f + 12582912.0f;  // 1.5 · 2^23: rounds to an integer
    float k = shifted - 12582912.0f;
    float r = (clipped - k * 0.693359375f) + k * 2.12194440e-4f;  // log 2 in two parts
    float tail = 0.001390129644f;
    tail = tail * r + 0.008363162168f;
    tail = tail * r + 0.04166685358f;
    tail = tail * r + 0.1666657719f;
    tail = tail * r + 0.4999999955f;
    float mantissa = 1.0f + (r + r * r * tail);
    float scale = bits_to_float((float_to_bits(shifted) << 23) + 0x3f800000u);
    return x < -86.0f ? 0.0f : mantissa * scale;
}

// (e^x − 1 − x) / x² for |x| ≤ ½, as even + x · odd, so that −x costs no more; minimax of degree 6
struct Excess { float even, odd; };
INLINE Excess excess(float x) {
    float s = x * x;
    float even = ((2.484157487e-5f * s + 0.001388904052f) * s + 0.04166666431f) * s + 0.5f;
    float odd = (1.996195474e-4f * s + 0.008333182764f) * s + 0.1666666714f;
    return {even, x * odd};
}

// log(w + (1−w) e^−a) for a ≥ 0 and 0 < w < 1, accurate where a is small
INLINE float log_mix(float w, float a) {
    float near_a = a < 0.5f ? a : 0.5f;
    Excess e = excess(near_a);
    float down = (near_a * near_a) * (e.even - e.odd) - near_a;  // e^−a − 1
    float y = (1.0f - w) * down;
    float u = a < 0.5f ? 1.0f + y : w + (1.0f - w) * exp_down(-a);
    uint32_t bits = float_to_bits(u);
    int32_t k = int32_t(bits - 0x3f3504f3u) >> 23;  // u / 2^k from √½ to √2
    float m = bits_to_float(bits - (uint32_t(k) << 23));
    float t = (a < 0.5f && k == 0) ? y : m - 1.0f;
    float log = -0.07620271773f;
    log = log * t + 0.1290410294f;
    log = log * t - 0.1324352782f;
    log = log * t + 0.1418192785f;
    log = log * t - 0.1660901632f;
    log = log * t + 0.2000196378f;
    log = log * t - 0.2500158626f;
    log = log * t + 0.3333332607f;
    log = log * t - 0.4999998829f;
    log = log * t + 1.0f;
    return t * log + float(k) * 0.693147181f;
}

// one side of a row: what log-probabilities are made from
struct Side { float max, scale, log; double log_norm; bool holes, good; };

template <class T>
Side normalise(const T* x, int64_t vocab, double temperature) {
    float max = -INF, low = INF, inverse = float(1.0 / temperature);
    double total = 0.0;
    int nan = 0;
    for (int64_t start = 0; start < vocab; start += BLOCK) {
        int64_t end = std::min(vocab, start + BLOCK);
        float top = -INF;
#pragma omp simd reduction(max : top) reduction(min : low) reduction(| : nan)
        for (int64_t i = start; i < end; i++) {
            float a = wide(x[i]);
            top = a > top ? a : top;
            low = a < low ? a : low;
            nan |= a != a;
        }
        if (top == -INF) continue;
        if (top > max) {
            if (max > -INF) total *= std::exp((double(max) - double(top)) / temperature);
            max = top;
        }
        float part = 0.0f;
#pragma omp simd reduction(+ : part)
        for (int64_t i = start; i < end; i++) part += exp_down((wide(x[i]) - max) * inverse);
        total += part;
    }
    double log = std::log(total);
    bool good = !nan && max > -INF && max < INF;
    // masks of large finite numbers go the way of −inf, where overflow is dealt with
    return {max, float(1.0 / total), float(log), log, !(low > -LARGE), good};
}

template <class T>
double first_top(const T* x, int64_t vocab, float max) {
    for (int64_t start = 0; start < vocab; start += BLOCK) {
        int64_t end = std::min(vocab, start + BLOCK);
        int found = 0;
#pragma omp simd reduction(| : found)
        for (int64_t i = start; i < end; i++) found |= wide(x[i]) == max;
        if (found)
            for (int64_t i = start; i < end; i++)
                if (wide(x[i]) == max) return double(i);
    }
    return NONE;
}

// everything about one token that the sums and slopes are made of; `both` is −inf unless both sides
// have it, and all choices are single comparisons of floats, which is what compilers vectorise
struct Token { float a, b, both, p, q, log_p, log_q, ratio, far, step; Excess e; };

template <bool HOLES, class T>
INLINE Token token(T pa, T qa, const Side& P, const Side& Q, float inverse, float shift) {
    Token t;
    t.a = wide(pa), t.b = wide(qa);
    t.both = t.a < t.b ? t.a : t.b;
    float x = (t.a - P.max) * inverse, y = (t.b - Q.max) * inverse;
    float l = (t.b - t.a) * inverse - shift;
    if (HOLES) {
        x = x < -LARGE ? -LARGE : x;
        y = y < -LARGE ? -LARGE : y;
        l = l < -LARGE ? -LARGE : l;
        l = l > LARGE ? LARGE : l;
    }
    t.p = exp_down(x) * P.scale;
    t.q = exp_down(y) * Q.scale;
    t.log_p = x - P.log;
    t.log_q = y - Q.log;
    t.ratio = HOLES ? (t.both > -INF ? l : 0.0f) : l;
    t.far = std::fabs(HOLES ? (t.both > -INF ? l : 1.0f) : l);  // below ½, series are the accurate way
    l = t.ratio;
    t.e = excess(l);
    float fine = t.p * (l + l * l * (t.e.even + t.e.odd));  // p (e^l − 1)
    t.step = t.far < 0.5f ? fine : t.q - t.p;
    return t;
}

struct Mix { float x, y; };
INLINE Mix mix(float l, float beta) {  // log m/p and log m/q
    float s = log_mix(l > 0.0f ? 1.0f - beta : beta, std::fabs(l));
    return {s + (l > 0.0f ? l : 0.0f), s - (l < 0.0f ? l : 0.0f)};
}

INLINE float excess_of(float prob, float x, float other) {  // prob (e^x − 1 − x), other = prob e^x
    Excess e = excess(x);
    return std::fabs(x) < 0.5f ? prob * (x * x * (e.even + e.odd)) : (other - prob) - prob * x;
}

struct Shared {  // the arguments that all rows have in common
    int64_t vocab;
    double temperature;
    float beta, inverse;
    int asks;
};

// the sums of p (log p/m) and q (log q/m) of a block, m = β p + (1−β) q, each term ≥ 0; l = log q/p,
// ±inf where one side lacks the token. A loop of its own, without structs: compilers vectorise it.
struct Mixed { float p, q; };
INLINE Mixed mixed(const float* ratios, const float* ps, const float* qs, int64_t count, float beta) {
    const float log_beta = std::log(beta), log_rest = std::log1p(-beta);
    float js_p = 0, js_q = 0;
#pragma omp simd reduction(+ : js_p, js_q)
    for (int64_t i = 0; i < count; i++) {
        float p = ps[i], q = qs[i], given = ratios[i];
        float a = std::fabs(given);
        float l = a < LARGE ? given : 0.0f;
        float s = log_mix(l > 0.0f ? 1.0f - beta : beta, std::fabs(l));
        float x = s + (l > 0.0f ? l : 0.0f), y = s - (l < 0.0f ? l : 0.0f);
        x = a < LARGE ? x : log_beta, y = a < LARGE ? y : log_rest;
        float middle = beta * p + (1.0f - beta) * q;
        float of_p = excess_of(p, x, middle), of_q = excess_of(q, y, middle);
        js_p += given < INF ? of_p : 0.0f;
        js_q += given > -INF ? of_q : 0.0f;
    }
    return {js_p, js_q};
}

template <int ASKS, bool HOLES, class T>
void pair_sums(const T* p, const T* q, const Side& P, const Side& Q, const Shared& s, double* out) {
    const float inverse = s.inverse, beta = s.beta;
    const float shift = float((double(Q.max) - P.max) / s.temperature + (Q.log_norm - P.log_norm));
    float ratios[ASKS & ASK_JS ? BLOCK : 1], p_room[ASKS & ASK_JS ? BLOCK : 1];
    float q_room[ASKS & ASK_JS ? BLOCK : 1];
    double sums[P_AT] = {0.0}, residual = 0.0;
    for (int64_t start = 0; start < s.vocab; start += BLOCK) {
        int64_t end = std::min(s.vocab, start + BLOCK);
        float kl = 0, off = 0, back = 0, hp = 0, hq = 0, js_p = 0, js_q = 0, lost_p = 0, lost_q = 0;
        float alone_p = 0, alone_q = 0;
#pragma omp simd reduction(+ : kl, off, back, hp, hq, js_p, js_q, lost_p, lost_q, alone_p, alone_q)
        for (int64_t i = start; i < end; i++) {
            Token t = token<HOLES>(p[i], q[i], P, Q, inverse, shift);
            float l = t.ratio, square = l * l;
            if (HOLES) {
                lost_p += t.both > -INF ? 0.0f : t.p;
                lost_q += t.both > -INF ? 0.0f : t.q;
                alone_p += t.both > -INF ? 0.0f : (t.a > -INF ? 1.0f : 0.0f);
                alone_q += t.both > -INF ? 0.0f : (t.b > -INF ? 1.0f : 0.0f);
            }
            off += t.step;
            float far = t.step - t.p * l;
            far = HOLES ? (t.both > -INF ? far : 0.0f) : far;
            kl += t.far < 0.5f ? t.p * (square * (t.e.even + t.e.odd)) : far;
            if (ASKS & ASK_MORE) {
                far = t.q * l - t.step;
                far = HOLES ? (t.both > -INF ? far : 0.0f) : far;
                back += t.far < 0.5f ? t.q * (square * (t.e.even - t.e.odd)) : far;
                hp -= t.p * t.log_p;
                hq -= t.q * t.log_q;
            }
            if (ASKS & ASK_JS) {
                float alone = t.a > t.b ? -INF : INF;  // where neither has it, p = q = 0: no matter
                ratios[i - start] = !HOLES || t.both > -INF ? l : alone;
                p_room[i - start] = t.p, q_room[i - start] = t.q;
            }
        }
        if (ASKS & ASK_JS) {
            Mixed m = mixed(ratios, p_room, q_room, end - start, beta);
            js_p = m.p, js_q = m.q;
        }
        residual += off, sums[KL] += kl, sums[REVERSE_KL] += back;
        sums[P_ENTROPY] += hp, sums[Q_ENTROPY] += hq;
        sums[JS_P] += js_p, sums[JS_Q] += js_q, sums[P_LOST] += lost_p, sums[Q_LOST] += lost_q;
        sums[P_ALONE] += alone_p, sums[Q_ALONE] += alone_q;
    }
    sums[KL] += sums[Q_LOST], sums[REVERSE_KL] += sums[P_LOST];
    sums[JS_P] += (1.0 - beta) * sums[Q_LOST], sums[JS_Q] += beta * sums[P_LOST];
    // Σ q − p is what the normalisers, sums of rounded exponentials, are off by against each other:
    // a part in 10⁷, but so is the whole difference of two logits that are nearly the same
    residual = std::log1p(residual);
    sums[KL] += residual - std::expm1(residual);
    sums[REVERSE_KL] += residual - std::expm1(residual);
    out[Q_LOG] += residual;
    for (int each = P_ENTROPY; each < P_TOP; each++) out[each] = std::max(sums[each], 0.0);
}

// KL alone, in one pass. The terms are u (e^l − 1 − l) with u = p up to a factor and l = log q/p up
// to a constant c, guessed from the first block and corrected after each. With A and B the sums of
// u (e^l − 1 − l) and u (e^l − 1), and U that of u, KL = A/U + log(1 + B/U) − B/U whatever c is; and
// where c is right B is 0, so that nothing cancels. False where it cannot be done this way: tokens
// without mass, NaN, or a p that is nowhere near q.
template <class T>
bool kl_in_one_pass(const T* p, const T* q, const Shared& s, double* out) {
    const float inverse = s.inverse;
    float p_max = -INF, q_max = -INF, most = -INF, low = INF, c = 0.0f;
    double U = 0.0, A = 0.0, B = 0.0;
    for (int64_t start = 0; start < s.vocab; start += BLOCK) {
        int64_t end = std::min(s.vocab, start + BLOCK);
        float p_top = -INF, q_top = -INF;
#pragma omp simd reduction(max : p_top, q_top) reduction(min : low)
        for (int64_t i = start; i < end; i++) {
            float a = wide(p[i]), b = wide(q[i]), less = a < b ? a : b;
            p_top = a > p_top ? a : p_top;
            q_top = b > q_top ? b : q_top;
            low = less < low ? less : low;
        }
        if (!(low > -LARGE)) return false;
        if (start == 0) c = (q_top - p_top) * inverse;
        p_max = std::max(p_max, p_top), q_max = std::max(q_max, q_top);
        float top = std::max({most, p_top, q_top - c / inverse});
        if (top > most && start > 0) {
            double smaller = std::exp((double(most) - double(top)) * inverse);
            U *= smaller, A *= smaller, B *= smaller;
        }
        most = top;
        float u_part = 0.0f, a_part = 0.0f, b_part = 0.0f;
#pragma omp simd reduction(+ : u_part, a_part, b_part)
        for (int64_t i = start; i < end; i++) {
            float a = wide(p[i]), b = wide(q[i]);
            float u = exp_down((a - most) * inverse), v = exp_down((b - most) * inverse - c);
            float l = (b - a) * inverse - c;
            Excess e = excess(l);
            float curve = u * (l * l * (e.even + e.odd)), line = u * l, step = v - u;
            bool near = std::fabs(l) < 0.5f;
            u_part += u;
            a_part += near ? curve : step - line;
            b_part += near ? curve + line : step;
        }
        U += u_part, A += a_part, B += b_part;
        if (!(U > 1e-30 && U + B > 1e-30 && U < INF && B < INF)) return false;
        float better = float(c + std::log1p(B / U));
        double shift = double(better) - double(c);
        double moved = std::exp(-shift) * B + U * std::expm1(-shift);
        A += moved - B + shift * U, B = moved, c = better;
    }
    double offset = double(most) * inverse;
    out[P_MAX] = p_max, out[P_LOG] = std::log(U) + offset - double(p_max) * inverse;
    out[Q_MAX] = q_max, out[Q_LOG] = std::log(U + B) + offset + c - double(q_max) * inverse;
    out[KL] = std::max(A / U + (std::log1p(B / U) - B / U), 0.0);
    return true;
}

template <class T>
double entropy(const T* x, const Side& X, const Shared& s) {
    double sum = 0.0;
    for (int64_t start = 0; start < s.vocab; start += BLOCK) {
        int64_t end = std::min(s.vocab, start + BLOCK);
        float part = 0.0f;
#pragma omp simd reduction(- : part)
        for (int64_t i = start; i < end; i++) {
            float a = (wide(x[i]) - X.max) * s.inverse;
            a = a < -LARGE ? -LARGE : a;
            part -= exp_down(a) * X.scale * (a - X.log);
        }
        sum += part;
    }
    return std::max(sum, 0.0);
}

template <class T>
void row_sums(const T* p, const T* q, const Shared& s, double* out) {
    std::fill(out, out + SUMS, 0.0);
    if (s.asks == ASK_KL && kl_in_one_pass(p, q, s, out)) return;
    Side P = normalise(p, s.vocab, s.temperature), Q = P;
    if (q) Q = normalise(q, s.vocab, s.temperature);
    out[P_MAX] = P.max, out[P_LOG] = P.log_norm, out[Q_MAX] = Q.max, out[Q_LOG] = Q.log_norm;
    if (!P.good) out[P_LOG] = NONE;
    if (!Q.good) out[Q_LOG] = NONE;
    if (!P.good || !Q.good) {
        std::fill(out + P_ENTROPY, out + SUMS, NONE);
        return;
    }
    bool holes = P.holes || Q.holes;
    out[NOTE] = holes;
    if (!q) {
        if (s.asks & ASK_MORE) out[P_ENTROPY] = entropy(p, P, s);
    } else if (s.asks & ASK_JS) {
        holes ? pair_sums<ASK_MORE | ASK_JS, true>(p, q, P, Q, s, out)
              : pair_sums<ASK_MORE | ASK_JS, false>(p, q, P, Q, s, out);
    } else if (s.asks & ASK_MORE) {
        holes ? pair_sums<ASK_MORE, true>(p, q, P, Q, s, out)
              : pair_sums<ASK_MORE, false>(p, q, P, Q, s, out);
    } else if (s.asks & ASK_KL) {
        pair_sums<ASK_KL, true>(p, q, P, Q, s, out);  // what one pass could not do
    }
    if (s.asks & ASK_TOP) {
        out[P_TOP] = first_top(p, s.vocab, P.max);
        out[Q_TOP] = first_top(q, s.vocab, Q.max);
    }
}

struct Weights {  // the coefficients of one row and side
    float one, ratio, log, mix, step, at;
    explicit Weights(const double* c)
        : one(float(c[ONE])), ratio(float(c[RATIO])), log(float(c[LOG])), mix(float(c[MIX])),
          step(float(c[STEP])), at(float(c[AT])) {}
};

// one side's gradient at one token; x is log m/p or log m/q
template <bool ALL>
INLINE float slope(float prob, float log, float ratio, float step, float x, const Weights& c) {
    float inner = c.one + c.ratio * ratio;
    if (ALL) inner += c.log * log + c.mix * x;
    return prob * inner + c.step * step;
}

template <bool WANT_P, bool WANT_Q, bool ALL, bool HOLES, class T>
void pair_slopes(const T* p, const T* q, const Side& P, const Side& Q, const Shared& s,
                 const Weights& cp, const Weights& cq, int64_t id, T* gp, T* gq) {
    const float inverse = s.inverse, beta = s.beta;
    const float shift = float((double(Q.max) - P.max) / s.temperature + (Q.log_norm - P.log_norm));
    const float log_beta = std::log(beta), log_rest = std::log1p(-beta);
    const int64_t vocab = s.vocab;
    auto at = [=](int64_t i, float more_p, float more_q) __attribute__((always_inline)) {
        Token t = token<HOLES>(p[i], q[i], P, Q, inverse, shift);
        Mix m = ALL ? mix(t.ratio, beta) : Mix{0.0f, 0.0f};
        float x = t.both > -INF ? m.x : log_beta, y = t.both > -INF ? m.y : log_rest;
        float p_found = slope<ALL>(t.p, t.log_p, t.ratio, t.step, x, cp);
        float q_found = slope<ALL>(t.q, t.log_q, t.ratio, t.step, y, cq);
        p_found += more_p, q_found += more_q;
        if (HOLES) {
            p_found = t.a > -INF ? p_found : 0.0f;
            q_found = t.b > -INF ? q_found : 0.0f;
        }
        if (WANT_P) put(p_found, gp[i]);
        if (WANT_Q) put(q_found, gq[i]);
    };
#pragma omp simd
    for (int64_t i = 0; i < vocab; i++) at(i, 0.0f, 0.0f);
    if (id >= 0) at(id, cp.at, cq.at);
}

template <class T>
void side_slopes(const T* p, const Side& P, const Shared& s, const Weights& c, int64_t id, T* gp) {
    const int64_t vocab = s.vocab;
    const float inverse = s.inverse;
    auto at = [=](int64_t i, float more) __attribute__((always_inline)) {
        float x = (wide(p[i]) - P.max) * inverse;
        x = x < -LARGE ? -LARGE : x;
        float found = exp_down(x) * P.scale * (c.one + c.log * (x - P.log)) + more;
        put(wide(p[i]) > -INF ? found : 0.0f, gp[i]);
    };
#pragma omp simd
    for (int64_t i = 0; i < vocab; i++) at(i, 0.0f);
    if (id >= 0) at(id, c.at);
}

Side from_sums(const double* sums, int max, int log) {
    double norm = sums[log];
    return {float(sums[max]), float(std::exp(-norm)), float(norm), norm, false, norm == norm};
}

template <class T>
void row_slopes(const T* p, const T* q, const Shared& s, const double* sums, const double* c,
                int64_t id, T* gp, T* gq) {
    Side P = from_sums(sums, P_MAX, P_LOG), Q = from_sums(sums, Q_MAX, Q_LOG);
    Weights cp(c), cq(c + SIDE);
    if (!P.good || (q && !Q.good)) {
        for (T* g : {gp, gq})
            if (g)
                for (int64_t i = 0; i < s.vocab; i++) put(float(NONE), g[i]);
    } else if (!q) {
        if (gp) side_slopes(p, P, s, cp, id, gp);
    } else if (s.asks & ASK_JS || sums[NOTE]) {  // rarer: one loop that does both sides, for less code
        std::vector<T> spare(gp && gq ? 0 : s.vocab);
        gp = gp ? gp : spare.data(), gq = gq ? gq : spare.data();
        s.asks & ASK_JS ? pair_slopes<true, true, true, true>(p, q, P, Q, s, cp, cq, id, gp, gq)
                        : pair_slopes<true, true, false, true>(p, q, P, Q, s, cp, cq, id, gp, gq);
    } else if (gp && gq) {
        pair_slopes<true, true, false, false>(p, q, P, Q, s, cp, cq, id, gp, gq);
    } else if (gp) {
        pair_slopes<true, false, false, false>(p, q, P, Q, s, cp, cq, id, gp, gp);
    } else if (gq) {
        pair_slopes<false, true, false, false>(p, q, P, Q, s, cp, cq, id, gq, gq);
    }
}

// rows in turn to whoever is free, some at a time
template <class Row>
void each_row(int64_t n, int64_t vocab, int threads, Row row) {
    const int64_t step = std::max<int64_t>(1, 65536 / vocab);
    std::atomic<int64_t> next(0);
    auto work = [&] {
        for (int64_t start; (start = next.fetch_add(step)) < n;)
            for (int64_t i = start; i < std::min(n, start + step); i++) row(i);
    };
    std::vector<std::thread> others;
    try {
        for (int64_t i = 1; i < std::min<int64_t>(threads, (n + step - 1) / step); i++)
            others.emplace_back(work);
    } catch (const std::system_error&) {  // no more threads to be had: do with these
    }
    work();
    for (auto& other : others) other.join();
}

struct Call {  // the same in native.py
    const void *p, *q;
    int64_t p_stride, q_stride;
    const int64_t* ids;
    const uint8_t* keep;
    int64_t rows, vocab;
    double temperature, beta;
    int32_t asks, threads;
};

struct Slopes {
    const double *sums, *coefficients;
    void *grad_p, *grad_q;
    int64_t p_stride, q_stride;
};

template <class T>
void all_sums(const Call& call, double* out) {
    Shared s{call.vocab, call.temperature, float(call.beta), float(1.0 / call.temperature),
             call.asks};
    each_row(call.rows, call.vocab, call.threads, [&](int64_t i) {
        if (call.keep && !call.keep[i]) return;
        const T* q = call.q ? (const T*)call.q + i * call.q_stride : nullptr;
        double found[SUMS];
        row_sums((const T*)call.p + i * call.p_stride, q, s, found);
        for (int each = 0; each < SUMS; each++) out[each * call.rows + i] = found[each];
    });
}

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

template <class T>
void all_slopes(const Call& call, const Slopes& out) {
    prefer_large_pages(out.grad_p, call.rows * call.vocab * sizeof(T));
    prefer_large_pages(out.grad_q, call.rows * call.vocab * sizeof(T));
    Shared s{call.vocab, call.temperature, float(call.beta), float(1.0 / call.temperature),
             call.asks};
    each_row(call.rows, call.vocab, call.threads, [&](int64_t i) {
        T* gp = out.grad_p ? (T*)out.grad_p + i * out.p_stride : nullptr;
        T* gq = out.grad_q ? (T*)out.grad_q + i * out.q_stride : nullptr;
        if (call.keep && !call.keep[i]) {
            for (T* g : {gp, gq})
                if (g) std::memset((void*)g, 0, sizeof(T) * call.vocab);
            return;
        }
        double found[SUMS], c[2 * SIDE];
        for (int each = 0; each < SUMS; each++) found[each] = out.sums[each * call.rows + i];
        for (int each = 0; each < 2 * SIDE; each++) c[each] = out.coefficients[each * call.rows + i];
        const T* q = call.q ? (const T*)call.q + i * call.q_stride : nullptr;
        row_slopes((const T*)call.p + i * call.p_stride, q, s, found, c,
                   call.ids ? call.ids[i] : -1, gp, gq);
    });
}

}  // namespace

// dtype: 0 float32, 1 bfloat16

extern "C" int kullback_sums(int dtype, const Call* call, double* out) {
    if (dtype == 0) return all_sums<float>(*call, out), 0;
    if (dtype == 1) return all_sums<bfloat16>(*call, out), 0;
    return 1;
}

extern "C" int kullback_slopes(int dtype, const Call* call, const Slopes* out) {
    if (dtype == 0) return all_slopes<float>(*call, *out), 0;
    if (dtype == 1) return all_slopes<bfloat16>(*call, *out), 0;
    return 1;
}
