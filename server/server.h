// The gRPC face of an agent: serves it on Unix sockets until it is stopped.
//
//   listener threads: accept4 -> SO_PEERCRED -> gRPC -> one completion queue thread ->
//   BridgeService (coroutines)
//     -> Agent -> loop's thread -> back to the completion queue's thread
//
// The one more line of a C++ parent that opens its agent to others:
//
//   auto server = server::Server::Start(*agent, {.listen =
//   {"unix:/run/user/1000/deka/parent.sock"}});
//
// Thread: any, one at a time. The destructor stops it at once. The agent outlives the server, and
// its loop runs meanwhile.
#ifndef SERVER_SERVER_H_
#define SERVER_SERVER_H_

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "agent/agent.h"

namespace deka::server {

class Server {
 public:
  struct Options {
    std::vector<std::string> listen;  // `unix:PATH` each; empty: ipc::DefaultAddress()
    size_t connections_max = 1024;
    std::chrono::milliseconds write_stalled_ms_max{10'000};  // to one observer, then its call ends
  };

  // Serves when it returns. INVALID_ARGUMENT for an address that is no `unix:PATH` or too long (107
  // bytes); kAddressInUse if another agent serves it; FAILED_PRECONDITION for a directory that
  // others can open. A stale socket file is taken over: a flock on PATH.lock decides who serves.
  static absl::StatusOr<std::unique_ptr<Server>> Start(agent::Agent& agent, Options options);

  ~Server();

  // Accepts no more, lets calls under way finish for at most `grace`, then ends them. Removes the
  // socket files.
  void Stop(std::chrono::milliseconds grace);

 private:
  class Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace deka::server

#endif  // SERVER_SERVER_H_
