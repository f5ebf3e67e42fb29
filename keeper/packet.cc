#include "keeper/packet.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

namespace deka::keeper {

Received ReceivePacket(int socket, int flags, Packet& packet) {
  packet.count = 0;
  packet.truncated = false;
  iovec part = {.iov_base = &packet.message, .iov_len = sizeof(packet.message)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(packet.descriptors))];
  msghdr header = {};
  ssize_t bytes;
  do {
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof(control);
    bytes = recvmsg(socket, &header, flags | MSG_CMSG_CLOEXEC);
    // ECONNRESET is told once, and before what is still to be received.
  } while (bytes < 0 && (errno == EINTR || errno == ECONNRESET));
  if (bytes < 0) return Received::kNothing;

  for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const size_t more = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    memcpy(packet.descriptors + packet.count, CMSG_DATA(c), more * sizeof(int));
    packet.count += more;
  }
  packet.truncated = (header.msg_flags & MSG_CTRUNC) != 0;
  if (bytes == 0) return Received::kEnd;
  const bool whole = bytes == sizeof(packet.message) && (header.msg_flags & MSG_TRUNC) == 0;
  return whole ? Received::kPacket : Received::kNoise;
}

int SendPacket(int socket, int flags, const Message& message, const int* descriptors,
               size_t count) {
  if (count > kDescriptorsMax) return EINVAL;
  iovec part = {.iov_base = const_cast<Message*>(&message), .iov_len = sizeof(message)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kDescriptorsMax)] = {};
  msghdr header = {};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  if (count > 0) {
    header.msg_control = control;
    header.msg_controllen = CMSG_SPACE(sizeof(int) * count);
    cmsghdr* c = CMSG_FIRSTHDR(&header);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int) * count);
    memcpy(CMSG_DATA(c), descriptors, sizeof(int) * count);
  }
  while (sendmsg(socket, &header, flags | MSG_NOSIGNAL) < 0) {
    if (errno != EINTR) return errno;
  }
  return 0;
}

}  // namespace deka::keeper
