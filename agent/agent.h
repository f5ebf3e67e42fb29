// The children of this host: forks them, records what happens to them, and lets callers send to,
// observe and disconnect them.
//
//   in process:  Fork, Adopt -> Child (Send, Disconnect, Kill) -> Listener, on the loop's thread
//   for others:  the API's own requests -> loop's thread -> Child -> `done`
//                Observe -> Observation, which reads EventLog from the caller's thread
//
// A C++ parent embeds it: makes an EventLoop and an Agent, forks through it, gets its children's
// messages by callback with no RPC on the way, and opens it to others by giving it to
// server::Server. deka-agent is the same with a main.
//
// Thread: the constructor, the destructor, Fork and Adopt belong to the loop's thread; everything
// else is for any thread. `done` is called exactly once, on the loop's thread; a request made after
// Stop or after the loop ended is answered kAgentStopping at once.
//
// The destructor releases: children keep running and see their channel end. Stop ends them in
// order.
#ifndef AGENT_AGENT_H_
#define AGENT_AGENT_H_

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "agent/child.h"
#include "agent/observation.h"
#include "deka/bridge/v1/bridge_service.pb.h"
#include "ipc/child_process.h"
#include "ipc/descriptor.h"
#include "ipc/event_loop.h"
#include "ipc/keeper.h"

namespace deka::agent {

namespace v1 = ::deka::bridge::v1;

struct AgentMemory;

struct Limits {
  size_t message_bytes_max = 1 << 20;  // ceiling 64 MiB
  size_t queue_bytes_max = 4 << 20;
  size_t queue_messages_max = 65536;
  size_t log_bytes_max = 4 << 20;
  size_t log_events_max = 16384;
  size_t logs_bytes_max = 256 << 20;  // the largest log yields first
  size_t queues_bytes_max = 256 << 20;
  size_t children_max = 16384;
  size_t observers_max = 1024;
  size_t ended_children_max = 1024;
  std::chrono::milliseconds ended_child_kept_ms_max{600'000};
  size_t fork_request_ids_max = 4096;  // remembered, ten minutes at most
  size_t send_request_ids_max = 1024;  // finished ones remembered for a child, ten minutes at most
  std::chrono::milliseconds request_id_kept_ms_max{600'000};
};

// The processes around an agent's own, which only the program that it runs in knows. What
// v1::Agent tells of them.
struct Lineage {
  pid_t keeper_pid = 0;     // outlives the agent; 0: none
  pid_t spare_pid = 0;      // takes over when the agent ends; 0: none
  int64_t incarnation = 1;  // how many agents there were, this one included
  bool degraded = false;    // the keeper has ended
};

// Who asks: see v1::Sender.
struct Caller {
  std::string principal;  // verified
  std::string client;     // what it says of itself
};

template <typename T>
using Done = absl::AnyInvocable<void(absl::StatusOr<T>)>;

// Takes back what was asked for: a send that has not begun is taken out of the queue, see
// Agent::SendMessage. Any thread.
class Cancellation {
 public:
  virtual ~Cancellation() = default;
  // `reason` is kNotSentCancelled or kNotSentDeadline. `done` is still called, with the outcome.
  virtual void Cancel(absl::Status reason) = 0;
};

class Agent {
 public:
  struct Options {
    std::string id = {};  // [a-z0-9][a-z0-9-]{0,62}; empty: the host's name, made to fit
    Limits limits = {};
    // Who outlives the agent, and the memory of all its children, zero at first: both or none, and
    // both outlive it. Then what is forked for others survives the agent, see Recover.
    ipc::Keeper* keeper = nullptr;
    AgentMemory* memory = nullptr;
    std::optional<unsigned long> descriptors_soft_max =
        {};                // RLIMIT_NOFILE that children get; unset: the agent's own
    Lineage lineage = {};  // until SetLineage
  };

  // INVALID_ARGUMENT if the id is malformed or limits do not fit each other; the message names the
  // limit.
  static absl::StatusOr<std::unique_ptr<Agent>> Create(ipc::EventLoop& loop, Options options);
  ~Agent();

  Agent(const Agent&) = delete;
  Agent& operator=(const Agent&) = delete;

  const std::string& id() const;

  // What GetAgent tells from here on, in requests made afterwards, and observations of `degraded`,
  // which stays. Any thread.
  void SetLineage(Lineage lineage);

  // --- In process, on the loop's thread. ---

  struct Description {
    std::string display_name = {};
    std::map<std::string, std::string> labels = {};
    size_t log_bytes_max = 0;  // 0: the agent's
  };

  // Starts a child as ipc::ChildProcess::Fork does: stdio is inherited unless the options say
  // otherwise. The child is the agent's and lives until its listener's OnClose has returned.
  // `listener` may be null and outlives the child.
  absl::StatusOr<Child*> Fork(ipc::ForkOptions options, Description description,
                              Child::Listener* listener);

  // Takes over a channel that the parent already has. Owns `socket` from here on, also if it fails.
  absl::StatusOr<Child*> Adopt(int socket, pid_t pid, ipc::Dialect dialect, Description description,
                               Child::Listener* listener);

  // Under a keeper: goes on with the children of the agent before, before anything is forked. What
  // was recorded stays, numbers go on, what was not told is told again, what was accepted is
  // written. A child whose memory cannot be is given up, and why is returned: its channel ends, its
  // process goes on.
  struct FoundChild {
    uint64_t number = 0;
    ipc::Descriptor memory = {};
    ipc::Descriptor channel = {};  // as the next two: not valid if there is none any more
    ipc::Descriptor output[2] = {};
    pid_t pid = 0;
    ipc::Descriptor pidfd = {};
  };
  std::vector<absl::Status> Recover(std::vector<FoundChild> children);

  // --- For others: the API's methods, see bridge_service.proto for what they do and how they fail.
  // Any thread. ---

  void ForkChild(v1::ForkChildRequest request, Caller caller, Done<v1::ForkChildResponse> done);
  void GetChild(v1::GetChildRequest request, Done<v1::GetChildResponse> done);
  void ListChildren(v1::ListChildrenRequest request, Done<v1::ListChildrenResponse> done);
  void Disconnect(v1::DisconnectRequest request, Caller caller, Done<v1::DisconnectResponse> done);
  void SignalChild(v1::SignalChildRequest request, Caller caller,
                   Done<v1::SignalChildResponse> done);
  // `limits` lacks what the server enforces: connections_max, write_stalled_ms_max.
  void GetAgent(v1::GetAgentRequest request, Done<v1::GetAgentResponse> done);

  struct SendOptions {
    // Waits for room in the queue instead of failing with kQueueFull. Sends that wait keep their
    // order.
    bool wait_for_room = false;
    // Called on the loop's thread when the message is in the queue: the time to take the next of a
    // pipelined stream. Not called if it is refused.
    absl::AnyInvocable<void()> on_accepted = {};
  };
  // Calls for one child take effect in the order they are made. The cancellation may be dropped at
  // any time.
  std::shared_ptr<Cancellation> SendMessage(v1::SendMessageRequest request, Caller caller,
                                            SendOptions options,
                                            Done<v1::SendMessageResponse> done);

  // The observation is used by one thread at a time, and destroyed before the agent.
  void Observe(v1::ObserveRequest request, Done<std::unique_ptr<Observation>> done);

  // Ends everything in order: refuses new requests with kAgentStopping; disconnects every child
  // (kFlush); after disconnect_ms_max closes the channels that are still open, and when each
  // `disconnected` is recorded sends SIGTERM to the children that still run; after terminate_ms_max
  // SIGKILL, also to the process groups that they lead (ipc::ChildProcess::KillGroup); waits for
  // each `closed`, kill_ms_max at most (another process may hold a channel); then ends the
  // observations (Fin, AGENT_STOPPING). Waits no longer than something still runs. `done` when all
  // is over. Called again, what is shorter than before holds from then on. Any thread.
  struct StopOptions {
    std::chrono::milliseconds disconnect_ms_max{2000};  // from disconnect to SIGTERM
    std::chrono::milliseconds terminate_ms_max{5000};   // from SIGTERM to SIGKILL
    std::chrono::milliseconds kill_ms_max{2000};        // from SIGKILL to giving up
  };
  void Stop(StopOptions options, absl::AnyInvocable<void()> done);

 private:
  class Impl;
  class Sending;
  explicit Agent(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;  // a request that is under way holds it only while it runs
};

}  // namespace deka::agent

#endif  // AGENT_AGENT_H_
