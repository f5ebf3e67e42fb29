// The gRPC face of an agent: serves it on Unix sockets until it is stopped.
//
//   Listener's thread: accept4 -> SO_PEERCRED -> gRPC
//   CallThread's:      gRPC -> BridgeService (coroutines) -> Agent -> its loop's thread -> back
//
// The one more line of a C++ parent that opens its agent to others:
//
//   auto server = server::Server::Start(*agent, {.listen = {"unix:/run/user/1000/deka/my.sock"}});
//
// Also served: grpc.health.v1.Health, which is NOT_SERVING when the server or its agent is
// stopping, and reflection.
//
// Thread: any, one at a time. The destructor stops it at once. The agent outlives the server; calls
// that ask it something wait for its loop, so the loop runs meanwhile.
#ifndef SERVER_SERVER_H_
#define SERVER_SERVER_H_

#include <sys/types.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "agent/agent.h"
#include "server/listener.h"
#include "server/upgrade.h"

namespace deka::server {

class Server {
 public:
  struct Options {
    std::vector<std::string> listen = {};   // `unix:PATH` each; empty: ipc::DefaultAddress()
    std::vector<Listener::Held> held = {};  // see Listener::Options
    pid_t pid = getpid();                   // the same
    // At once; the calls of one more are answered with kConnectionsLimit, then its client is asked
    // to leave.
    size_t connections_max = 1024;
    // For a client to begin HTTP/2 (its SETTINGS), then its connection is closed: who connects and
    // says nothing takes nobody's place for longer.
    std::chrono::milliseconds handshake_ms_max{5'000};
    std::chrono::milliseconds write_stalled_ms_max{10'000};  // to one observer, then its call ends
    Upgrade upgrade = {};                                    // empty: UpgradeAgent is refused
  };

  // Calls of one connection at once; further ones wait in their client.
  static constexpr int kCallsMax = 4096;
  // One request: a largest message and what stands around it.
  static constexpr int kRequestBytesMax = (64 << 20) + (1 << 20);

  // Has the sockets when it returns: clients connect, and wait for Serve(). kInvalidArgument for an
  // address that is no `unix:PATH` or too long (107 bytes); kAddressInUse if another agent serves
  // it; kAddressUnsafe for a directory that others can open. The directory is made if it is
  // missing. A stale socket file is taken over: a flock on PATH.lock decides who serves.
  static absl::StatusOr<std::unique_ptr<Server>> Open(agent::Agent& agent, Options options);

  // Answers clients from now on. Once.
  void Serve();

  // Open, then Serve.
  static absl::StatusOr<std::unique_ptr<Server>> Start(agent::Agent& agent, Options options);

  ~Server();

  // The absolute paths of the sockets served.
  const std::vector<std::string>& paths() const;

  // See Listener.
  std::vector<std::pair<int, int>> descriptors() const;
  void SetPid(pid_t pid);

  // Health is NOT_SERVING from now on, everything else goes on: for who stops the agent next.
  void AnnounceStop();

  // Accepts no more, removes the socket files, ends observations (Fin, AGENT_STOPPING), lets calls
  // under way finish for at most `grace`, then ends them.
  void Stop(std::chrono::milliseconds grace);

 private:
  class Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace deka::server

#endif  // SERVER_SERVER_H_
