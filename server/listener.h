// The sockets of a server: where it serves, who may connect, and how many.
//
//   unix:PATH -> directory 0700 -> flock on PATH.lock -> stale socket removed -> bind, listen
//   accept4 -> same user (SO_PEERCRED) -> below connections_max -> the server, which owns it
//     else  -> Refusal: its calls are answered with why, then its client is asked to leave
//
// The lock decides who serves: a program that ended without a word leaves a socket file behind,
// but no lock. Lock files stay where they are.
//
// When no descriptor is left, accepting pauses: clients wait in the backlog meanwhile. The client
// of a connection that is refused has refusal_ms_max to hear why, and as long again to leave when
// it is asked to (a client that writes to a closed connection reports that, and not what it was
// told); its calls are answered until then. refusals_max of them are heard at once, a further one
// takes the place of the oldest. None of them delays the listener.
//
// Thread: any, one at a time. Connections are given out on a thread of the listener's own.
#ifndef SERVER_LISTENER_H_
#define SERVER_LISTENER_H_

#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ipc/descriptor.h"
#include "server/refusal.h"

namespace deka::server {

// The longest path that a Unix socket may have.
inline constexpr size_t kSocketPathBytesMax = 107;

// The absolute path of `unix:PATH`. kInvalidArgument for any other address, with what to do
// instead, and for a path that is too long.
absl::StatusOr<std::string> SocketPath(std::string_view address);

class Listener {
 public:
  // A socket that listens already, and the lock that goes with it.
  struct Held {
    ipc::Descriptor lock;
    ipc::Descriptor socket;
  };

  struct Options {
    std::vector<std::string> addresses;  // `unix:PATH` each; at least one
    std::vector<Held> held = {};         // taken over where they serve one of the addresses
    pid_t pid = getpid();                // who serves: for those who find the lock taken
    size_t connections_max = 1024;       // at once
    uid_t user = 0;                      // whose connections are taken
    size_t refusals_max = 64;            // at once, beside those; at least 1
    // To hear why, and once more to leave.
    std::chrono::milliseconds refusal_ms_max{1000};
    // How long accepting pauses when no descriptor is left.
    std::chrono::milliseconds pause_ms{100};
  };

  // Listens when it returns: clients may connect, and wait for Start. kInvalidArgument for a bad
  // address, kAddressInUse if it is served already, kAddressUnsafe if others may open the
  // directory, kInternal if the system refuses.
  static absl::StatusOr<std::unique_ptr<Listener>> Open(Options options);

  // Stop().
  ~Listener();

  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  // Accepts from now on. `take` owns the descriptor that it is given; it is called on the
  // listener's thread.
  void Start(absl::AnyInvocable<void(int socket)> take);

  // Accepts no more, removes the socket files, gives up the locks. `take` is not called any more.
  void Stop();

  // Waits until clients have read all that was written to their connections, at most until then.
  // After Stop().
  void WaitUntilRead(std::chrono::steady_clock::time_point deadline);

  const std::vector<std::string>& paths() const { return paths_; }

  // Who serves from now on, as Options::pid.
  void SetPid(pid_t pid);

  // Of each path, its lock and its socket, which stay the listener's.
  std::vector<std::pair<int, int>> descriptors() const;

  // Since Start. Any thread.
  struct Counts {
    std::atomic<uint64_t> accepted{0};
    std::atomic<uint64_t> refused_user{0};   // of another user
    std::atomic<uint64_t> refused_limit{0};  // beyond connections_max
    std::atomic<uint64_t> pauses{0};         // because no descriptor was left
  };
  const Counts& counts() const { return counts_; }

 private:
  // A socket file that is served.
  struct Place {
    std::string path;
    int lock = -1;
    int socket = -1;
    dev_t device = 0;  // of the socket file
    ino_t inode = 0;
  };

  using Clock = std::chrono::steady_clock;

  // A connection that is refused.
  struct Refused {
    int socket;
    Refusal refusal;
    Clock::time_point until;
    bool asked_to_leave = false;
  };

  // A connection that was given away. gRPC does not tell when it ends, but keeps its descriptor
  // until then: it has ended when the number stands for nothing, or for another socket.
  struct Connection {
    int socket;
    dev_t device;
    ino_t inode;
  };

  explicit Listener(Options options) : options_(std::move(options)) {}

  absl::Status OpenPlace(const std::string& path);
  // True if a held one serves the path.
  bool TakeHeld(const std::string& path);
  void Run();
  // Takes what waits at a socket. False: no descriptor is left.
  bool Accept(int listening);
  void Take(int socket);
  void Refuse(int socket, const absl::Status& why);
  // Answers what its client has written. False: it is over.
  bool Answer(Refused& refused);
  // When its time is over: asks its client to leave, and when that time is over too, ends it.
  // False: it is over.
  bool Dismiss(Refused& refused);
  void EndOldestRefusal();
  bool HasRoom();
  void ForgetEnded();

  Options options_;
  std::vector<std::string> paths_;
  std::vector<Place> places_;
  absl::AnyInvocable<void(int socket)> take_;
  int stop_event_ = -1;
  std::thread thread_;
  // The listener's thread, while it runs.
  std::vector<Connection> connections_;
  std::deque<Refused> refused_;  // the oldest first
  Counts counts_;
};

}  // namespace deka::server

#endif  // SERVER_LISTENER_H_
