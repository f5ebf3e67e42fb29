// A client of an agent whose surface reads as Node's ChildProcess, for children that another
// process has forked.
//
//   deka::Client client = ...Connect("unix:/run/deka/agent.sock");
//   auto child = client->Fork({.program = "node", .args = {"worker.js"}});
//   child->OnMessage([](std::string_view json) { ... });
//   child->Send(R"({"hello":1})");
//   child->Disconnect();
//
// Thread: every method, any thread. Callbacks of one observation come one at a time on a thread of
// its own; they may call anything but the destructor or Stop() of their own observation.
#ifndef SDK_CPP_CLIENT_H_
#define SDK_CPP_CLIENT_H_

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "deka/bridge/v1/bridge_service.pb.h"

namespace deka {

namespace v1 = ::deka::bridge::v1;

class Child;

// What an observation tells. All may be empty.
struct Observer {
  std::function<void(const v1::Attached&)> on_attached;  // again after each resume
  std::function<void(const v1::Child&)> on_child;        // of the snapshot, again after each resume
  std::function<void()> on_snapshot_complete;
  std::function<void(const v1::Event&)> on_event;
  // Events missed, exactly. After a resume `from_child_sequence` is filled in from what was seen
  // before.
  std::function<void(const v1::Gap&)> on_gap;
  std::function<void(const v1::Heartbeat&)> on_heartbeat;
  std::function<void(const absl::Status& reason)>
      on_lost;  // the connection is lost; it is being resumed
  std::function<void(const v1::Cursor&)> on_resumed;
  // Last call, exactly once: OK with the Fin, or the error that ended it. Not called by Stop().
  std::function<void(const absl::Status&, const v1::Fin&)> on_end;
};

// A running observation. It resumes by itself from its cursor when the connection is lost. The
// destructor stops it.
class Subscription {
 public:
  virtual ~Subscription() = default;
  virtual void Stop() = 0;  // returns when no callback runs or will run
  virtual void Wait() = 0;  // until it has ended
  virtual v1::Cursor cursor() const = 0;
};

class Client : public std::enable_shared_from_this<Client> {
 public:
  struct Options {
    std::string target;  // `unix:PATH`; empty: $DEKA_TARGET, else the agent's default socket
    std::string name;    // what it says of itself: `program/pid` if empty
    std::chrono::milliseconds connect_ms_max{5000};
  };

  // UNAVAILABLE if no agent answers in time; the message says which socket and how to start one.
  static absl::StatusOr<std::shared_ptr<Client>> Connect(Options options);
  virtual ~Client() = default;

  // Starts a child; retried by request id if the connection is lost meanwhile.
  virtual absl::StatusOr<std::unique_ptr<Child>> Fork(v1::ChildSpec spec) = 0;
  // A child by display name, id, or resource name.
  virtual absl::StatusOr<std::unique_ptr<Child>> Find(std::string_view name) = 0;
  virtual absl::StatusOr<v1::ListChildrenResponse> List(v1::ListChildrenRequest request) = 0;

  virtual absl::StatusOr<std::unique_ptr<Subscription>> Observe(v1::ObserveRequest request,
                                                                Observer observer) = 0;
};

class Child {
 public:
  virtual ~Child() = default;  // the child goes on

  virtual const std::string& name() const = 0;  // resource name
  virtual v1::Child description() const = 0;    // as it was when forked or found
  virtual int pid() const = 0;

  // Node's send(): OK means written to the child's socket. See SendMessage in bridge_service.proto
  // for the errors.
  virtual absl::StatusOr<v1::SendMessageResponse> Send(std::string_view json) = 0;

  // Node's on('message'), 'disconnect', 'exit'. Messages from the fork on (after Fork) or from now
  // on (after Find) are told, none missing: they are observed from the first call of one of these
  // on, a later one replaces the callback.
  virtual void OnMessage(std::function<void(std::string_view json)> callback) = 0;
  virtual void OnDisconnect(std::function<void()> callback) = 0;
  virtual void OnExit(std::function<void(const v1::ExitStatus&)> callback) = 0;
  // Messages missed, exactly.
  virtual void OnGap(std::function<void(const v1::Gap&)> callback) = 0;

  virtual bool connected() = 0;
  virtual absl::Status Disconnect(v1::DisconnectMode mode = v1::DISCONNECT_MODE_FLUSH) = 0;
  virtual absl::Status Kill(int signal = 15) = 0;
  // Waits until it has exited.
  virtual absl::StatusOr<v1::ExitStatus> Wait() = 0;
};

}  // namespace deka

#endif  // SDK_CPP_CLIENT_H_
