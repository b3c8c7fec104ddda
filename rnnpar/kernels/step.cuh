// rnn_step: one time step, now = tanh(now + b + W before), as one launch. backends/cupy_gpu.py: fused, graph.
//
// Parallelises: a warp has a tile of ROWS rows of W and SEQUENCES sequences; its lanes share the columns of W, four
// at a time. Synchronises: nothing within a launch (the next launch waits for this one). Moves: W from the second-level
// cache to the multiprocessors in every step, each row once a tile of sequences; h from there too.
//
// Letters: B batch, H hidden (a multiple of 4; the caller pads with zeros). w (H,H) float32 or bfloat16, b (H),
// before (B,H): h[t-1]; now (B,H): U x[t] on the way in, h[t] on the way out. Grid: (row tiles, sequence tiles).
// Compiled with: ROWS * SEQUENCES <= 32, both powers of 2; WARPS a block; BFLOAT16 0 or 1.

#if BFLOAT16
typedef uint2 Weights4;  // four weights
#else
typedef float4 Weights4;
#endif

extern "C" __global__ void __launch_bounds__(WARPS * 32)
    rnn_step(const Weights4* __restrict__ w, const float* __restrict__ b, const float4* __restrict__ before,
             float* __restrict__ now, int H, int B) {
  int lane = threadIdx.x % 32;
  int row = (blockIdx.x * WARPS + threadIdx.x / 32) * ROWS;
  int sequence = blockIdx.y * SEQUENCES;
  if (row >= H) return;
  int rest = H - row;  // rows that there are; a tile beyond the last one computes its last row again
  int ahead = B - sequence;

  float sums[ROWS * SEQUENCES] = {};
  for (int k = lane; k < H / 4; k += 32) {
    float4 weights[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) weights[r] = unpack(w[(size_t)(row + min(r, rest - 1)) * (H / 4) + k]);
#pragma unroll
    for (int j = 0; j < SEQUENCES; j++) {
      float4 h = before[(size_t)(sequence + min(j, ahead - 1)) * (H / 4) + k];
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        float& sum = sums[j * ROWS + r];
        sum = fmaf(weights[r].x, h.x, fmaf(weights[r].y, h.y, fmaf(weights[r].z, h.z, fmaf(weights[r].w, h.w, sum))));
      }
    }
  }
  const int N = ROWS * SEQUENCES;
  float sum = sum_over_lanes<N, 32>(sums, lane);
  int mine = lane / (32 / N), r = mine % ROWS, j = mine / ROWS;  // which of the tile's elements this lane now has
  if (lane % (32 / N) == 0 && r < rest && j < ahead) {
    float* to = now + (size_t)(sequence + j) * H + row + r;
    *to = activate(sum + b[row + r] + *to);
  }
}
