// What CUDA C++ has no words for, as inline PTX, and the small functions that all kernels here share.
//
// The kernels include no CUDA header at all: NVRTC needs nothing but this text. On the CPU executor of the tests
// (RNNPAR_ON_CPU) the primitives of the first part come from the executor instead; the second part is the same.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef RNNPAR_ON_CPU

#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define SHARED(type, name, count) __shared__ type name[count]

__device__ __forceinline__ float exp2_approx(float x) {  // 2 ulp, denormals to zero
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float reciprocal_approx(float x) {  // 1 ulp; 0 for infinity
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two bfloat16 in one word, the first in the lower half, each rounded to nearest even.
__device__ __forceinline__ u32 pack_bfloat16(float first, float second) {
  u32 both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
}

#if __CUDA_ARCH__ >= 800
// acc (16x8, float32) += a (16x16, bfloat16) * b (16x8, bfloat16), by a warp on the tensor cores. A lane holds
// acc[0..1]: row lane/4, columns 2*(lane%4)+0..1; acc[2..3]: the same of row lane/4 + 8. See the PTX manual,
// "Matrix fragments for mma.m16n8k16".
__device__ __forceinline__ void mma(float (&acc)[4], const uint4& a, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}
#endif

#if __CUDA_ARCH__ >= 900
// --- clusters: blocks on neighbouring multiprocessors that can write into each other's shared memory ---

typedef u32 shared_address;  // in the cluster's window on all its blocks' shared memory

__device__ __forceinline__ u32 cluster_rank() {
  u32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of all blocks of the cluster: nobody leaves before all have come; what was written before is seen.
__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Where `local`, in this block's shared memory, lies in the block of that rank.
__device__ __forceinline__ shared_address in_block(const void* local, u32 rank) {
  u32 address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"((u32)__cvta_generic_to_shared(local)), "r"(rank));
  return address;
}

// An mbarrier lies in shared memory. A phase of it ends when all arrivals and all announced bytes have come.
__device__ __forceinline__ void mbarrier_init(u64* barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;\n\tfence.mbarrier_init.release.cluster;" ::"r"(
                   (u32)__cvta_generic_to_shared(barrier)),
               "r"(arrivals)
               : "memory");
}

// One arrival, which also announces that so many bytes will be sent in this phase.
__device__ __forceinline__ void mbarrier_expect(u64* barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"((u32)__cvta_generic_to_shared(barrier)),
               "r"(bytes)
               : "memory");
}

// Waits until the phase of that parity (0 for the first, 1 for the second, 0, ...) has ended.
__device__ __forceinline__ void mbarrier_wait(u64* barrier, u32 parity) {
  asm volatile(
      "{\n\t.reg .pred done;\n"
      "again:\n\tmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n\t@!done bra again;\n\t}" ::"r"(
          (u32)__cvta_generic_to_shared(barrier)),
      "r"(parity)
      : "memory");
}

// Stores into a block's shared memory and tells that block's mbarrier how many bytes have come, in one message:
// neither side waits for an answer.
__device__ __forceinline__ void send(shared_address to, shared_address barrier, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
               "r"(a), "r"(b), "r"(c), "r"(d), "r"(barrier)
               : "memory");
}
#endif

__device__ __forceinline__ u32 bits(float x) { return __float_as_uint(x); }
__device__ __forceinline__ float from_bits(u32 x) { return __uint_as_float(x); }

#endif  // RNNPAR_ON_CPU

const u32 ALL_LANES = 0xffffffffu;

// The pointwise update of a step. Absolute error below 3e-7 everywhere, relative error below 2e-6: 1 - 2 / (e^2x + 1)
// has lost the digits of a small x, which an odd polynomial keeps. Never beyond 1; NaN for NaN.
__device__ __forceinline__ float activate(float x) {
  float s = x * x;
  float p = fmaf(s, fmaf(s, fmaf(s, fmaf(s, 0.021869488f, -0.053968254f), 0.13333333f), -0.33333334f), 1.f);
  float e = exp2_approx(x * 2.8853900817779268f);
  float far = fmaf(-2.f, reciprocal_approx(e + 1.f), 1.f);
  return fabsf(x) < 0.25f ? x * p : far;
}

// Sums each of v[0..N) over LANES neighbouring lanes, N and LANES powers of 2, N <= LANES. Not N sums everywhere, but
// halves: in each round a lane keeps half of what it has and hands over the rest, so N = LANES = 32 costs 31 shuffles
// and not 160. Returns the sum of v[(lane % LANES) / (LANES / N)].
template <int N, int LANES>
__device__ __forceinline__ float sum_over_lanes(float (&v)[N], int lane) {
  int n = N;
#pragma unroll
  for (int other = LANES / 2; other > 0; other /= 2) {
    bool upper = lane & other;
    if (n > 1) {
      n /= 2;
#pragma unroll
      for (int i = 0; i < N / 2; i++)
        if (i < n) {
          float kept = upper ? v[i + n] : v[i], given = upper ? v[i] : v[i + n];
          v[i] = kept + __shfl_xor_sync(ALL_LANES, given, other);
        }
    } else {
      v[0] += __shfl_xor_sync(ALL_LANES, v[0], other);
    }
  }
  return v[0];
}

// Four weights, as float32 whatever they are kept in.
__device__ __forceinline__ float4 unpack(const float4& w) { return w; }
__device__ __forceinline__ float4 unpack(const uint2& w) {
  return make_float4(from_bits(w.x << 16), from_bits(w.x & 0xffff0000u), from_bits(w.y << 16),
                     from_bits(w.y & 0xffff0000u));
}
