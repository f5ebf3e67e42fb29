// The agent's end of its conversation with its keeper (keeper/protocol.h).
//
//   Open --> [spare: takes in descriptors] --> kGo --> Take*, Begin --> agent: Keeper, events
//
// A spare does nothing but take its mail until kGo: it neither reads, writes nor stores anything of
// what it is given. Then what it was given is for agent::Agent::Recover.
//
// When the keeper is gone, so is the custody: nothing is held for a successor any more, nothing can
// be started, and the kernel is asked how children ended (OnEnd with nothing).
//
// Thread: Open and Await anywhere, before there are threads; then the loop's.
#ifndef SERVER_KEEPER_LINK_H_
#define SERVER_KEEPER_LINK_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/agent.h"
#include "agent/agent_memory.h"
#include "ipc/descriptor.h"
#include "ipc/event_loop.h"
#include "ipc/keeper.h"
#include "keeper/packet.h"
#include "keeper/protocol.h"

namespace deka::server {

class KeeperLink final : public ipc::Keeper {
 public:
  // The number in DEKA_KEEPER_FD, which is taken out of the environment; -1: there is no keeper.
  static int FromEnvironment();

  // Owns `socket`.
  static absl::StatusOr<std::unique_ptr<KeeperLink>> Open(int socket);

  ~KeeperLink() override;

  // Waits for kGo. A spare whose keeper ends does, too (PR_SET_PDEATHSIG). INVALID_ARGUMENT if the
  // keeper speaks another protocol, or what it holds is another version's.
  absl::Status AwaitGo();

  // --- After kGo. ---

  // 1 for the first agent.
  int64_t incarnation() const { return incarnation_; }
  pid_t keeper_pid() const { return keeper_pid_; }
  agent::AgentMemory& memory() const { return *memory_; }

  // What the agents before had. Once.
  std::vector<agent::Agent::FoundChild> TakeChildren();
  // What one of them gave to KeepForSuccessors.
  std::vector<ipc::Descriptor> TakeKept(uint32_t slot);

  struct Events {
    absl::AnyInvocable<void(int signal)> on_stop;    // end the children, then the agent
    absl::AnyInvocable<void(pid_t spare)> on_spare;  // is ready; 0: none is
    absl::AnyInvocable<void(uint32_t)> on_refused;   // an upgrade: keeper::Refusal
    absl::AnyInvocable<void()> on_gone;              // the keeper; last
  };
  // Hears the keeper from now on, and shows it that this process is alive. `loop` outlives it.
  void Begin(ipc::EventLoop& loop, Events events);

  // Clients are answered: the agent works.
  void Ready();
  // Holds duplicates of these, for TakeKept. They stay the caller's.
  void KeepForSuccessors(uint32_t slot, const std::vector<int>& descriptors);
  // Asks for a new agent in place of this one; the program, or -1: the one at the same path.
  void Upgrade(int program);

  // --- ipc::Keeper. ---

  bool gone() const override { return gone_; }
  spawn::Started Start(uint64_t number, const spawn::Options& options, const Held& held) override;
  void OnEnd(uint64_t number, Ended ended) override;
  void Acknowledge(uint64_t number) override;
  void Release(uint64_t number) override;
  void Forget(uint64_t number) override;

 private:
  static constexpr std::chrono::milliseconds kHeartbeat{500};

  explicit KeeperLink(int socket) : socket_(socket) {}

  absl::Status TakeFile(keeper::Packet& packet);
  absl::Status TakeMail(keeper::Packet& packet);
  void Beat();

  // Waits until the keeper has taken it; what it says meanwhile is kept for later. False: it is
  // gone.
  bool Send(const keeper::Message& message, const std::vector<int>& descriptors = {});
  // For the loop's next turn.
  void Defer(const keeper::Packet& packet);
  // False: there is nothing, or the keeper is gone.
  bool Receive(int flags, keeper::Packet& packet);
  void ReceiveAll();
  void HearAll();
  void Hear(const keeper::Message& message);
  void TellEnd(uint64_t number);
  void Lose();

  ipc::Descriptor socket_;
  void* file_ = nullptr;
  agent::AgentMemory* memory_ = nullptr;
  pid_t keeper_pid_ = 0;
  int64_t incarnation_ = 0;
  bool went_ = false;
  bool ready_ = false;
  bool gone_ = false;

  std::map<uint64_t, agent::Agent::FoundChild> children_;
  std::map<uint32_t, std::vector<ipc::Descriptor>> kept_;

  ipc::EventLoop* loop_ = nullptr;
  std::optional<ipc::Watch> watch_;
  std::optional<ipc::Timer> heartbeat_;
  std::optional<ipc::TurnTask> turn_;
  Events events_;
  std::deque<keeper::Message> heard_;  // while an answer was waited for
  std::map<uint64_t, int> ended_;      // wait statuses that nobody was told
  std::map<uint64_t, Ended> on_end_;
};

}  // namespace deka::server

#endif  // SERVER_KEEPER_LINK_H_
