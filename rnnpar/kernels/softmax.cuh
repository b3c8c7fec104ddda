// softmax_warps, softmax_blocks: y = softmax(y + c), row by row, in place. backends/cupy_gpu.py: the end of each method.
//
// softmax_warps   parallelises rows over warps: a warp a row, for up to some hundred outputs; meets in shuffles only.
// softmax_blocks  parallelises rows over blocks: a block a row, for up to millions; two barriers for each of two sums.
// Moves: y three times through the second-level cache (the maximum, the sum, the quotient), once from and to memory.
//
// y (rows, O), c (O), float32. Compiled with: WARPS a block.

__device__ __forceinline__ float largest_of_lanes(float x) {
#pragma unroll
  for (int other = 16; other > 0; other /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, other));
  return x;
}

__device__ __forceinline__ float sum_of_lanes(float x) {
#pragma unroll
  for (int other = 16; other > 0; other /= 2) x += __shfl_xor_sync(ALL_LANES, x, other);
  return x;
}

// e^(logit - largest): never above 1, so it cannot overflow.
__device__ __forceinline__ float exp_below(float logit, float largest) {
  return exp2_approx((logit - largest) * 1.4426950408889634f);
}

extern "C" __global__ void __launch_bounds__(WARPS * 32)
    softmax_warps(float* __restrict__ y, const float* __restrict__ c, int rows, int O) {
  int lane = threadIdx.x % 32, row = blockIdx.x * WARPS + threadIdx.x / 32;
  if (row >= rows) return;
  float* mine = y + (size_t)row * O;
  float largest = -__int_as_float(0x7f800000), sum = 0.f;
  for (int i = lane; i < O; i += 32) largest = fmaxf(largest, mine[i] += c[i]);
  largest = largest_of_lanes(largest);
  for (int i = lane; i < O; i += 32) sum += mine[i] = exp_below(mine[i], largest);
  float scale = 1.f / sum_of_lanes(sum);
  for (int i = lane; i < O; i += 32) mine[i] *= scale;
}

extern "C" __global__ void __launch_bounds__(WARPS * 32)
    softmax_blocks(float* __restrict__ y, const float* __restrict__ c, int rows, int O) {
  SHARED(float, partial, WARPS);
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float* mine = y + (size_t)blockIdx.x * O;
  float largest = -__int_as_float(0x7f800000), sum = 0.f;

  for (int i = threadIdx.x; i < O; i += WARPS * 32) largest = fmaxf(largest, mine[i] += c[i]);
  largest = largest_of_lanes(largest);
  if (lane == 0) partial[warp] = largest;
  __syncthreads();  // all warps' maxima are there
  for (int i = 0; i < WARPS; i++) largest = fmaxf(largest, partial[i]);
  __syncthreads();  // all have read them: the same place takes the sums

  for (int i = threadIdx.x; i < O; i += WARPS * 32) sum += mine[i] = exp_below(mine[i], largest);
  sum = sum_of_lanes(sum);
  if (lane == 0) partial[warp] = sum;
  __syncthreads();  // all warps' sums are there
  sum = 0.f;
  for (int i = 0; i < WARPS; i++) sum += partial[i];
  float scale = 1.f / sum;
  for (int i = threadIdx.x; i < O; i += WARPS * 32) mine[i] *= scale;
}
