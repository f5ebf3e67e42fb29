// An agent for keeper_test: passes each packet of the keeper on to the test, and each of the test
// to the keeper, descriptors and all. Stores the heartbeat once it was told kGo.
//
//   fake_agent SOCKET   connects to the test there
//   fake_agent          a child: waits until its standard input ends
#include "keeper/fake_agent.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "keeper/packet.h"

namespace deka::keeper::fake {
namespace {

constexpr int kBeatMs = 5;

// Sends the packet, waiting for room, and closes its descriptors.
void Forward(int socket, Packet& packet) {
  SendPacket(socket, 0, packet.message, packet.descriptors, packet.count);
  for (size_t i = 0; i < packet.count; ++i) close(packet.descriptors[i]);
}

int Connect(const char* path) {
  const int test = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
  if (connect(test, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) _exit(101);
  return test;
}

int Run(const char* path) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const char* variable = getenv(kDescriptorVariable);
  if (variable == nullptr) return 100;
  const int keeper = atoi(variable);
  const int test = Connect(path);
  Packet hello;
  hello.message = {.type = kHello, .pid = getpid()};
  Forward(test, hello);

  volatile AgentFile* file = nullptr;
  bool beats = false;
  bool listens = true;
  for (;;) {
    pollfd ready[2] = {{.fd = listens ? keeper : -1, .events = POLLIN, .revents = 0},
                       {.fd = test, .events = POLLIN, .revents = 0}};
    poll(ready, 2, beats ? kBeatMs : -1);
    if (beats) file->heartbeat = file->heartbeat + 1;

    Packet packet;
    if (ready[0].revents != 0) {
      if (ReceivePacket(keeper, 0, packet) == Received::kPacket) {
        if (packet.message.type == Type::kFile) {
          void* page = mmap(nullptr, sizeof(AgentFile), PROT_READ | PROT_WRITE, MAP_SHARED,
                            packet.descriptors[0], 0);
          if (page == MAP_FAILED) return 102;
          file = static_cast<AgentFile*>(page);
        }
        if (packet.message.type == Type::kGo) beats = true;
        Forward(test, packet);
      } else {
        listens = false;
      }
    }
    if (ready[1].revents == 0) continue;
    if (ReceivePacket(test, 0, packet) != Received::kPacket) return 0;
    if (packet.message.type < kFirst) {
      Forward(keeper, packet);
      continue;
    }
    if (packet.message.type == kExit) return packet.message.status;
    if (packet.message.type == kRaise) {
      signal(packet.message.status, SIG_DFL);  // no sanitizer's
      raise(packet.message.status);
    }
    if (packet.message.type == kBeat) beats = packet.message.detail != 0;
    if (packet.message.type == kListen) listens = packet.message.detail != 0;
    if (packet.message.type == kHangUp) {
      close(keeper);
      listens = false;
    }
    packet.message = {.type = kDone};
    packet.count = 0;
    Forward(test, packet);
  }
}

}  // namespace
}  // namespace deka::keeper::fake

int main(int count, char** arguments) {
  if (count > 1) _exit(deka::keeper::fake::Run(arguments[1]));
  char byte;
  while (read(STDIN_FILENO, &byte, 1) > 0) {
  }
  _exit(0);
}
