// rnn_hand_over: the hand-over of rnn_cluster and nothing else, round after round, to time it. kernels/gpu_probe.py:
// cluster. Needs compute capability 9.0.
//
// Parallelises: nothing. One warp in each of CLUSTER blocks; its lane l talks to block l. Synchronises: as rnn_cluster:
// a block's mbarrier counts the bytes that have come, and there is no barrier between blocks. Moves: 16 bytes a round
// from each block to each. What a lane sends is what has come from that block, plus one, so no round can begin early.
//
// Two buffers are enough, for rnn_cluster's reason, and lane by lane: block l writes a place of ours again only when it
// has what our lane l sent after it had read that place.
//
// count rounds; last (blocks, CLUSTER): what a lane has at the end. Compiled with: CLUSTER blocks, 2 to 16.

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(32)
    rnn_hand_over(int* __restrict__ last, int count) {
  DYNAMIC_SHARED(shared);
  u64* full = (u64*)shared;               // [2]: all messages of that round have come
  uint4* messages = (uint4*)(shared + 128);  // [2][CLUSTER]
  int lane = threadIdx.x, rank = cluster_rank();
  if (lane == 0)
    for (int i = 0; i < 2; i++) {
      mbarrier_init(&full[i], 1);
      mbarrier_expect(&full[i], CLUSTER * 16);
    }
  cluster_barrier();  // every block's mbarriers are there before anyone sends
  if (lane >= CLUSTER) return;

  shared_address to = in_block(messages + rank, lane), arrived = in_block(full, lane);
  u32 value = rank * CLUSTER + lane;
  for (int t = 0; t < count; t++) {
    int now = t & 1;
    send(to + now * CLUSTER * 16, arrived + now * 8, value, 0, 0, 0);
    mbarrier_wait(&full[now], t >> 1 & 1);
    if (lane == 0) mbarrier_expect(&full[now], CLUSTER * 16);  // for the round after the next
    value = messages[now * CLUSTER + lane].x + 1;
  }
  last[blockIdx.x * CLUSTER + lane] = value;
}
