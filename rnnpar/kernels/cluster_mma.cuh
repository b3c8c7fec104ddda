// rnn_cluster_mma: the same as rnn_cluster (read that first) on the tensor cores; bfloat16 weights, float32 state.
// backends/cupy_gpu.py: cluster with dtype="bfloat16". Needs compute capability 9.0.
//
// Parallelises: rows of W over the blocks of a cluster, slices of the batch over clusters; in a block a warp has 16 rows
// and a share of the columns, and adds up products of 16x16 tiles of W, kept in its registers, with 8 columns of h.
// Synchronises: as rnn_cluster, and one barrier in the block a step, between the warps' sums and their sum.
// Moves: h[t] as three bfloat16, 6 bytes an element, to all blocks of the cluster; W not at all.
//
// How the state stays float32 on tensor cores that multiply bfloat16: h = high + middle + low, three bfloat16 of 8 bits
// each, is exact for 24 bits; products and sums are float32. Up to two sequences the three terms are columns of the same
// tile (3 or 6 of its 8), which costs nothing; with 8 sequences and more they are three products.
//
// Compiled with: CLUSTER blocks, 1 to 16; ROWS a block, a multiple of 16; SEQUENCES 1, 2, or a multiple of 8;
// SPLIT warps that share the columns of 16 rows; SPILLED of a warp's CHUNKS of weights in shared memory.
// w: (CLUSTER, CHUNKS, 2, THREADS, 8) bfloat16, each thread's fragments in its own order; the rest as rnn_cluster.

const int THREADS = ROWS * 2 * SPLIT;
const int COLUMNS = (CLUSTER * ROWS + 32 * SPLIT - 1) / (32 * SPLIT) * (32 * SPLIT);
const int CHUNKS = COLUMNS / 32 / SPLIT;  // of 32 columns of W, for a warp
const int KEPT = CHUNKS - SPILLED;
const bool TOGETHER = SEQUENCES <= 2;  // the three terms of an element are columns of one tile
const int TILES = TOGETHER ? 1 : SEQUENCES / 8;
const int TERMS = TOGETHER ? 1 : 3;  // products for each tile
const int PITCH = COLUMNS + (COLUMNS % 64 ? 0 : 32);  // of a column of h: 8 lanes then read 8 different banks
const int STATE = (TOGETHER ? 8 : 3 * SEQUENCES) * PITCH;
const int SUMS = TILES * 8 * (ROWS + 4);  // of a warp's share of columns; the 4 keep its lanes in different banks
const int ELEMENTS = ROWS * SEQUENCES;
const int EACH = (ELEMENTS + THREADS - 1) / THREADS;  // elements of h that a thread finishes

// Which column of the state has that term (0 high, 1 middle, 2 low) of that sequence.
__device__ __forceinline__ int column_of(int sequence, int term) {
  return TOGETHER ? sequence * 3 + term : term * SEQUENCES + sequence;
}

__device__ __forceinline__ void split_in_three(float x, u16 (&terms)[3]) {
#pragma unroll
  for (int term = 0; term < 3; term++) {
    terms[term] = (u16)pack_bfloat16(x, 0.f);
    x -= from_bits((u32)terms[term] << 16);
  }
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
    rnn_cluster_mma(const uint4* __restrict__ w, const float* __restrict__ b, const float* __restrict__ h0,
                    float* __restrict__ s, int T, int B, int H) {
  DYNAMIC_SHARED(shared);
  u64* full = (u64*)shared;                               // [2]: all of the state in that buffer has come
  u16* state = (u16*)(shared + 128);                      // [2][columns of h][PITCH]
  u16* ready = state + 2 * STATE;                         // [THREADS / 16][3][16]: what is about to be sent
  float* sums = (float*)(ready + THREADS * 3);            // [SPLIT][TILES * 8][ROWS + 4]
  uint4* spilled = (uint4*)(sums + SPLIT * SUMS);         // [SPILLED][2][THREADS]
  int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  int rank = cluster_rank(), first = blockIdx.x / CLUSTER * SEQUENCES;
  int tile_row = warp % (ROWS / 16) * 16, share = warp / (ROWS / 16);

  uint4 weights[KEPT > 0 ? KEPT : 1][2];
  w += (size_t)rank * CHUNKS * 2 * THREADS + thread;
#pragma unroll
  for (int k = 0; k < KEPT; k++)
#pragma unroll
    for (int i = 0; i < 2; i++) weights[k][i] = w[(k * 2 + i) * THREADS];
  for (int k = 0; k < SPILLED * 2; k++) spilled[k * THREADS + thread] = w[(KEPT * 2 + k) * THREADS];
  for (int i = thread; i < STATE; i += THREADS) ((u32*)state)[i] = 0;  // both buffers, two elements a word
  if (CLUSTER > 1 && thread == 0)
    for (int i = 0; i < 2; i++) {
      mbarrier_init(&full[i], 1);
      mbarrier_expect(&full[i], CLUSTER * ELEMENTS * 6);
    }
  __syncthreads();  // the zeros are there before h0 is written over some of them
  for (int i = thread; i < SEQUENCES * H; i += THREADS) {
    int j = i / H, column = i % H;
    u16 terms[3] = {};
    if (first + j < B) split_in_three(h0[(size_t)(first + j) * H + column], terms);
    for (int term = 0; term < 3; term++) state[column_of(j, term) * PITCH + column] = terms[term];
  }
  cluster_barrier();  // every block's mbarriers are there before anyone sends, and its own first state before it is read

  float bias[EACH], ahead[EACH];  // ahead: U x[t], on its way one step before it is needed
#pragma unroll
  for (int e = 0; e < EACH; e++) {
    int i = thread + e * THREADS, row = rank * ROWS + i % ROWS, sequence = first + i / ROWS;
    bool valid = i < ELEMENTS && row < H && sequence < B;
    bias[e] = valid ? b[row] : 0.f;
    ahead[e] = valid ? s[(size_t)sequence * H + row] : 0.f;
  }
  shared_address others = in_block(state, lane % CLUSTER), arrived = in_block(full, lane % CLUSTER);

  for (int t = 0; t < T; t++) {
    int now = t & 1, next = now ^ 1;
    if (CLUSTER > 1 && t > 0) {
      mbarrier_wait(&full[now], (t - 1) >> 1 & 1);  // all of h[t-1] is there
      if (thread == 0) mbarrier_expect(&full[now], CLUSTER * ELEMENTS * 6);  // for h[t+1]
    }

    float acc[TILES][2][4] = {};  // two chains of products for each tile
    const u16* h = state + now * STATE + lane / 4 * PITCH + share * CHUNKS * 32 + lane % 4 * 8;
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) {
      uint4 a0 = k < KEPT ? weights[k][0] : spilled[(k - KEPT) * 2 * THREADS + thread];
      uint4 a1 = k < KEPT ? weights[k][1] : spilled[((k - KEPT) * 2 + 1) * THREADS + thread];
#pragma unroll
      for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int term = 0; term < TERMS; term++) {
          uint4 x = *(const uint4*)(h + (term * SEQUENCES + tile * 8) * PITCH + k * 32);
          mma(acc[tile][0], a0, x.x, x.y);
          mma(acc[tile][1], a1, x.z, x.w);
        }
    }
    float* mine = sums + share * SUMS + lane % 4 * 2 * (ROWS + 4) + tile_row + lane / 4;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
      for (int i = 0; i < 4; i++)  // i & 1: the next column; i & 2: eight rows further down
        mine[(tile * 8 + (i & 1)) * (ROWS + 4) + (i & 2) * 4] = acc[tile][0][i] + acc[tile][1][i];
    __syncthreads();  // the sums of all shares of the columns are there

#pragma unroll
    for (int e = 0; e < EACH; e++) {
      int i = thread + e * THREADS, local = i % ROWS, row = rank * ROWS + local, j = i / ROWS;
      bool exists = i < ELEMENTS, valid = exists && row < H && first + j < B;
      float sum = ahead[e] + bias[e];
      size_t element = ((size_t)t * B + first + j) * H + row;
      if (valid && t + 1 < T) ahead[e] = s[element + (size_t)B * H];
      if (exists)
#pragma unroll
        for (int part = 0; part < SPLIT; part++)
#pragma unroll
          for (int term = 0; term < (TOGETHER ? 3 : 1); term++)
            sum += sums[part * SUMS + (TOGETHER ? j * 3 + term : j) * (ROWS + 4) + local];
      float result = activate(sum);
      if (valid) s[element] = result;
      if (t + 1 < T) {
        u16 terms[3];
        split_in_three(result, terms);
        u16* group = ready + thread / 16 * 48;  // 16 neighbouring lanes have 16 rows of one sequence
        for (int term = 0; term < 3; term++) group[term * 16 + lane % 16] = terms[term];
        __syncwarp();  // the 16 rows' terms are there
        for (int piece = lane % 16 / CLUSTER; exists && piece < 6; piece += 16 / CLUSTER) {  // 8 rows of one term
          uint4 eight = *(const uint4*)(group + piece * 8);
          int at = next * STATE + column_of(j, piece / 2) * PITCH + row / 16 * 16 + piece % 2 * 8;
          if (CLUSTER == 1)
            *(uint4*)(state + at) = eight;
          else
            send(others + at * 2, arrived + next * 8, eight.x, eight.y, eight.z, eight.w);
        }
        if (e + 1 < EACH) __syncwarp();  // they have been read: the next element's may come
      }
    }
    if (CLUSTER == 1) __syncthreads();  // all of h[t] is there, and all have read h[t-1]
  }
}
