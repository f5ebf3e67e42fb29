// The memory of one channel: what must outlive the process that runs it.
//
//   control: Transfer receive, Transfer send, positions, flags | inbox ring | out ring | index of
//   sends
//
// Plain data with offsets, no pointers. In an embedded parent it is anonymous memory, touched page
// by page as it is used, so that an idle channel costs its control page only; under a keeper it
// will be mapped from a file. The code that uses it is the same.
#ifndef IPC_CHANNEL_MEMORY_H_
#define IPC_CHANNEL_MEMORY_H_

#include <sys/socket.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"

namespace deka::ipc {

class ChannelMemory {
 public:
  // One direction's system call and its outcome in one 64-byte cell. The kernel stores msg_len of
  // recvmmsg(vlen 1) and sendmmsg(vlen 1) in the same call that moves the bytes. The 4 bytes of
  // padding behind msg_len are never written by the kernel: they hold `base`, so the position is
  // base + msg_len, folded into a new base by one 8-byte store.
  struct alignas(64) Transfer {
    mmsghdr header;

    uint32_t Position() const;     // low 32 bits of the stream's position
    void Fold();                   // base = Position(), msg_len = 0
    void Advance(uint32_t bytes);  // base = Position() + bytes, msg_len = 0
  };
  static_assert(sizeof(Transfer) == 64);
};

}  // namespace deka::ipc

#endif  // IPC_CHANNEL_MEMORY_H_
