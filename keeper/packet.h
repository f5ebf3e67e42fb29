// One Message and its descriptors over a socket, for both sides of protocol.h.
//
// Uses nothing but libc, and no C++ runtime.
#ifndef KEEPER_PACKET_H_
#define KEEPER_PACKET_H_

#include <sys/types.h>

#include <cstddef>

#include "keeper/protocol.h"

namespace deka::keeper {

struct Packet {
  static constexpr size_t kDescriptorsRoom = 253;  // whatever a sender puts into one

  Message message;
  int descriptors[kDescriptorsRoom];  // close-on-exec; the receiver's to close
  size_t count = 0;
  bool truncated = false;  // some were lost: the receiver has no numbers left
};

enum class Received {
  kPacket,
  kNothing,  // for now
  kNoise,    // of another size than a Message; its descriptors are in the packet all the same
  kEnd       // the other side has closed its end, and all that it sent was received
};

// `flags` are recvmsg's: MSG_DONTWAIT, or 0 to wait.
Received ReceivePacket(int socket, int flags, Packet& packet);

// 0 or errno. `count` is kDescriptorsMax at most. The descriptors stay the caller's. EAGAIN: the
// socket is full. ETOOMANYREFS: too many descriptors are on their way, of all of the user's; no
// poll tells when that is over. EPIPE, ECONNRESET: the other side has closed its end.
int SendPacket(int socket, int flags, const Message& message, const int* descriptors, size_t count);

}  // namespace deka::keeper

#endif  // KEEPER_PACKET_H_
