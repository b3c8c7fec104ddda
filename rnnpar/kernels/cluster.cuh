// rnn_cluster: the whole sequence in one launch, by a cluster of blocks that write into each other's shared memory;
// float32. backends/cupy_gpu.py: cluster. Needs compute capability 9.0.
//
// Parallelises: rows of W over the CLUSTER blocks of a cluster, slices of SEQUENCES sequences over clusters. A warp
// has four rows. SPLIT lanes share the columns of SPLIT / 8 of them: where more lanes share more rows, h is read from
// shared memory less often, and more sums are handed from lane to lane. Each lane keeps its weights in registers for the
// whole sequence, the last SPILLED chunks of them in shared memory. Synchronises: no barrier in the loop. A block's
// mbarrier counts the bytes of h[t] that have come; its warps wait for all of them, and for nobody else. (A cluster of
// one block has nobody to hear from: there it is __syncthreads.) Moves: h[t] from each block into the shared memory of
// all blocks of its cluster, 16 bytes a store; W not at all.
//
// Why two buffers for h are enough, without a barrier behind the reading: a block sends h[t+1] only when it has all of
// h[t]; each warp of each block sends its part of h[t] only after it has read all of h[t-1]; so when h[t+1] comes into
// the buffer of h[t-1], everybody has finished with that. And a block may end without a barrier: when it has all of
// h[T-2], nobody sends it anything more.
//
// Letters: T steps, B batch, H hidden (a multiple of 4; rows and columns beyond it are zeros). Compiled with:
//   CLUSTER    blocks, 1 to 16             ROWS       rows of W a block, a multiple of 4: 8 threads each
//   SEQUENCES  1, 2, 4 or 8                SPILLED    of a lane's COLUMNS / 32 chunks of weights, those in shared memory
//   SPLIT      8, 16 or 32: SPILLED is a multiple of SPLIT / 8
// w: (CLUSTER, COLUMNS / 32, THREADS, 4), each thread's weights in its own order; b (H), h0 (B,H);
// s (T,B,H): U x on the way in, h on the way out. Grid: CLUSTER * slices of the batch.

const int THREADS = ROWS * 8;
const int COLUMNS = (CLUSTER * ROWS + 4 * SPLIT - 1) / (4 * SPLIT) * (4 * SPLIT);
const int LANE_ROWS = SPLIT / 8;  // that a lane has a share of
const int CHUNKS = COLUMNS / 32;  // of four weights a lane: COLUMNS / (4 * SPLIT) of each of its rows
const int KEPT = CHUNKS - SPILLED;
static_assert(KEPT % LANE_ROWS == 0, "a chunk of all of a lane's rows is either kept or spilled");
const int SUMS = SEQUENCES * LANE_ROWS;
const int SAME = SPLIT / SUMS;      // neighbouring lanes that end up with the same sum
const int CHAINS = SUMS < 4 ? 2 : 1;  // of additions for each sum, so that one need not wait for the other
const int COPIES = 32 / SEQUENCES;  // lanes of a warp that end up with the same four elements of h
const int TARGETS = (CLUSTER + COPIES - 1) / COPIES;  // blocks that such a lane sends its four elements to
const int STATE = SEQUENCES * COLUMNS;

__device__ __forceinline__ void add_product(float (&sums)[CHAINS][SUMS], int i, const float4& a, const float4& x) {
  float &one = sums[0][i], &other = sums[CHAINS - 1][i];
  one = fmaf(a.x, x.x, fmaf(a.y, x.y, one));
  other = fmaf(a.z, x.z, fmaf(a.w, x.w, other));
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
    rnn_cluster(const float4* __restrict__ w, const float* __restrict__ b, const float* __restrict__ h0,
                float* __restrict__ s, int T, int B, int H) {
  DYNAMIC_SHARED(shared);
  u64* full = (u64*)shared;                      // [2]: all of the state in that buffer has come
  float* state = (float*)(shared + 128);         // [2][SEQUENCES][COLUMNS]
  float4* spilled = (float4*)(state + 2 * STATE);  // [SPILLED][THREADS]
  int thread = threadIdx.x, lane = thread % 32;
  int rank = cluster_rank(), first = blockIdx.x / CLUSTER * SEQUENCES;

  float4 weights[KEPT > 0 ? KEPT : 1];
  w += (size_t)rank * CHUNKS * THREADS + thread;
#pragma unroll
  for (int k = 0; k < KEPT; k++) weights[k] = w[k * THREADS];
  for (int k = 0; k < SPILLED; k++) spilled[k * THREADS + thread] = w[(KEPT + k) * THREADS];
  for (int i = thread; i < 2 * STATE; i += THREADS) {
    int j = i / COLUMNS, column = i % COLUMNS;
    state[i] = i < STATE && column < H && first + j < B ? h0[(size_t)(first + j) * H + column] : 0.f;
  }
  if (CLUSTER > 1 && thread == 0)
    for (int i = 0; i < 2; i++) {
      mbarrier_init(&full[i], 1);
      mbarrier_expect(&full[i], SEQUENCES * CLUSTER * ROWS * 4);
    }
  cluster_barrier();  // every block's mbarriers are there before anyone sends, and its own first state before it is read

  // After the sums a lane has one element: row `row` of sequence `mine`; four rows together are what it sends.
  int sum = lane % SPLIT / SAME, mine = sum / LANE_ROWS, quarter = lane / SPLIT * LANE_ROWS + sum % LANE_ROWS;
  int row = rank * ROWS + thread / 32 * 4 + quarter, copy = quarter * SAME + lane % SAME;
  bool valid = row < H && first + mine < B;
  size_t element = (size_t)(first + mine) * H + row, step = (size_t)B * H;
  float bias = valid ? b[row] : 0.f;
  float ahead = valid ? s[element] : 0.f;  // U x[t], on its way one step before it is needed
  shared_address to[TARGETS], arrived[TARGETS];
#pragma unroll
  for (int i = 0; i < TARGETS; i++) {
    u32 target = (copy + i * COPIES) % CLUSTER;
    to[i] = in_block(state + mine * COLUMNS + row / 4 * 4, target);
    arrived[i] = in_block(full, target);
  }

  for (int t = 0; t < T; t++) {
    int now = t & 1, next = now ^ 1;
    float input = bias + ahead;
    if (t + 1 < T && valid) ahead = s[element + step];
    if (CLUSTER > 1 && t > 0) {
      mbarrier_wait(&full[now], (t - 1) >> 1 & 1);  // all of h[t-1] is there
      if (thread == 0) mbarrier_expect(&full[now], SEQUENCES * CLUSTER * ROWS * 4);  // for h[t+1]
    }

    const float4* h = (const float4*)(state + now * STATE) + lane % SPLIT;
    float sums[CHAINS][SUMS] = {};
#pragma unroll
    for (int k = 0; k < KEPT; k += LANE_ROWS)
#pragma unroll
      for (int j = 0; j < SEQUENCES; j++) {
        float4 x = h[j * (COLUMNS / 4) + k / LANE_ROWS * SPLIT];
#pragma unroll
        for (int r = 0; r < LANE_ROWS; r++) add_product(sums, j * LANE_ROWS + r, weights[k + r], x);
      }
#pragma unroll 2  // not all: they would all be loaded before, and there are no registers for that
    for (int k = KEPT; k < CHUNKS; k += LANE_ROWS) {
      float4 a[LANE_ROWS];
#pragma unroll
      for (int r = 0; r < LANE_ROWS; r++) a[r] = spilled[(k - KEPT + r) * THREADS + thread];
#pragma unroll
      for (int j = 0; j < SEQUENCES; j++) {
        float4 x = h[j * (COLUMNS / 4) + k / LANE_ROWS * SPLIT];
#pragma unroll
        for (int r = 0; r < LANE_ROWS; r++) add_product(sums, j * LANE_ROWS + r, a[r], x);
      }
    }
    if (CHAINS > 1)
#pragma unroll
      for (int i = 0; i < SUMS; i++) sums[0][i] += sums[CHAINS - 1][i];
    float result = activate(sum_over_lanes<SUMS, SPLIT>(sums[0], lane) + input);

    if (lane % SAME == 0 && valid) s[element] = result;
    element += step;
    if (t + 1 < T) {
      u32 four[4];  // this warp's four rows of the lane's sequence
#pragma unroll
      for (int i = 0; i < 4; i++) {
        int from = i / LANE_ROWS * SPLIT + (mine * LANE_ROWS + i % LANE_ROWS) * SAME + lane % SAME;
        four[i] = bits(__shfl_sync(ALL_LANES, result, from));
      }
      if (CLUSTER == 1) {
        uint4* own = (uint4*)(state + next * STATE + mine * COLUMNS + row / 4 * 4);
        if (copy == 0) *own = make_uint4(four[0], four[1], four[2], four[3]);
        __syncthreads();  // all of h[t] is there, and all have read h[t-1]
      } else {
#pragma unroll
        for (int i = 0; i < TARGETS; i++)
          if (copy + i * COPIES < CLUSTER)
            send(to[i] + next * STATE * 4, arrived[i] + next * 8, four[0], four[1], four[2], four[3]);
      }
    }
  }
}
