// One child of the agent: its process and channel, and the record of what happens to it.
//
//   ipc::ChildProcess -> Child -> EventLog (numbered, encoded once)
//                              -> Listener (in process, after the event is recorded)
//   Send -> queue with sender and request id -> ChildProcess -> event TO_CHILD when written, or
//   `undelivered`
//
// Thread: the loop's. Owned by the agent; valid until Listener::OnClose has returned.
#ifndef AGENT_CHILD_H_
#define AGENT_CHILD_H_

#include <csignal>
#include <string>
#include <string_view>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "ipc/child_process.h"

namespace deka::agent {

class Child {
 public:
  // What a parent in the same process hears: as Node's ChildProcess, in Node's order. Never called
  // from inside a call to the child. An in-process listener sees every message; no observer holds
  // it back or is held back by it.
  class Listener {
   public:
    virtual ~Listener() = default;
    virtual void OnSpawn(Child&) {}
    virtual void OnMessage(Child&, std::string_view /*json*/) {}
    virtual void OnOutput(Child&, const ipc::OutputLine&) {}
    virtual void OnError(Child&, const absl::Status&) {}
    virtual void OnDrain(Child&) {}  // after a Send that answered kAcceptedHigh
    virtual void OnDisconnect(Child&) {}
    virtual void OnExit(Child&, const ipc::ExitStatus&) {}
    virtual void OnClose(Child&) {}
  };

  virtual ~Child() = default;

  virtual const std::string& id() const = 0;
  virtual std::string name() const = 0;  // agents/{agent}/children/{child}
  virtual const std::string& display_name() const = 0;
  virtual pid_t pid() const = 0;
  virtual bool connected() const = 0;

  // As ipc::ChildProcess::Send. `on_written` (may be empty) is told the outcome once, on the loop's
  // thread; not if the agent is destroyed first.
  virtual absl::StatusOr<ipc::Channel::Accepted> Send(
      std::string_view json, absl::AnyInvocable<void(absl::Status)> on_written = {}) = 0;
  // Node's disconnect(): at once.
  virtual absl::Status Disconnect() = 0;
  virtual absl::Status Kill(int signal = SIGTERM) = 0;
};

}  // namespace deka::agent

#endif  // AGENT_CHILD_H_
