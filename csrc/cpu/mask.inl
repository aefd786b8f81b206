// Random masks, drawn by counter: the words of one seed can be made in any order and by any number of threads, on every
// instruction set the same. Philox4x32-10 of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3": block n
// of a seed is four words of 32 bits.

constexpr int64_t kMaskBlocks = kMaskGroup / 4;   // blocks at a time, as many as keep every vector unit busy

// words[w][l] is word w of block first + l.
CUSTOMLSTM_INLINE void philox(uint64_t seed, uint64_t first, uint32_t (&words)[4][kMaskBlocks]) {
  for (int64_t l = 0; l < kMaskBlocks; ++l) {
    words[0][l] = static_cast<uint32_t>(first + l);
    words[1][l] = static_cast<uint32_t>((first + l) >> 32);
    words[2][l] = words[3][l] = 0;
  }
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    for (int64_t l = 0; l < kMaskBlocks; ++l) {
      const uint64_t even = uint64_t{0xD2511F53} * words[0][l], odd = uint64_t{0xCD9E8D57} * words[2][l];
      words[0][l] = static_cast<uint32_t>(odd >> 32) ^ words[1][l] ^ key[0];
      words[1][l] = static_cast<uint32_t>(odd);
      words[2][l] = static_cast<uint32_t>(even >> 32) ^ words[3][l] ^ key[1];
      words[3][l] = static_cast<uint32_t>(even);
    }
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
}

// Flags begin .. end - 1 of a mask, begin a multiple of kMaskGroup: 1 where the flag's word is at most `most`.
inline void draw_flags(uint64_t seed, uint32_t most, uint8_t* flags, int64_t begin, int64_t end) {
  alignas(64) uint32_t words[4][kMaskBlocks];
  for (int64_t at = begin; at < end; at += kMaskGroup) {
    philox(seed, static_cast<uint64_t>(at) / 4, words);
    const uint32_t* const all = &words[0][0];
    if (end - at >= kMaskGroup) {
      for (int64_t k = 0; k < kMaskGroup; ++k) flags[at + k] = all[k] <= most;
    } else {
      for (int64_t k = 0; k < end - at; ++k) flags[at + k] = all[k] <= most;
    }
  }
}
