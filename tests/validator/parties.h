// The parties of a history that call the agent: each with a connection of its own, and a hand that
// records.
//
// Thread: a party runs on one thread, but for the answers of an Attach, which are read on a second.
#ifndef TESTS_VALIDATOR_PARTIES_H_
#define TESTS_VALIDATOR_PARTIES_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "deka/bridge/v1/bridge_service.grpc.pb.h"
#include "ipc/mutex.h"
#include "tests/validator/plan.h"
#include "tests/validator/record.h"

namespace deka::validator {

// Nothing takes as long, unless it hangs.
inline constexpr std::chrono::seconds kHangs{120};

// What the parties of a history share. Thread: any.
class Scene {
 public:
  Scene(const Plan& the_plan, std::string the_target, std::string the_program,
        std::string the_directory)
      : plan(the_plan),
        target(std::move(the_target)),
        program(std::move(the_program)),
        directory(std::move(the_directory)),
        children_(the_plan.children.size()) {}

  const Plan& plan;
  const std::string target;     // of the agent
  const std::string program;    // of the children
  const std::string directory;  // for their accounts
  Clock clock;
  v1::Cursor beginning;  // before the first event

  // The fork of a child of the plan; the same each time.
  v1::ForkChildRequest ForkOf(int child) const;
  std::string AccountOf(int child) const;

  void Forked(int child, const v1::Child& description);
  // Unset if it is not forked yet.
  std::optional<v1::Child> Known(int child) const;

  // What the witness was shown.
  void Saw(const v1::Event& event);
  int64_t seen() const;
  // Waits for some moments only: what it has missed it will not be shown.
  bool AwaitState(int child, v1::Child::State state) const;
  bool AwaitSeen(int64_t sequence) const;
  bool AwaitPlayed() const;

  // The senders are done, and the children have ended that end before the agent.
  void Played();
  void Stop();
  bool stopping() const;

 private:
  bool Await(const std::function<bool()>& happened, std::chrono::milliseconds limit = kHangs) const;
  bool Is(int child, v1::Child::State state) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable ipc::Mutex mutex_;
  mutable ipc::CondVar changed_;
  std::vector<std::optional<v1::Child>> children_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, v1::Child::State> states_ ABSL_GUARDED_BY(mutex_);  // by id
  int64_t seen_ ABSL_GUARDED_BY(mutex_) = 0;
  bool played_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

class Party {
 public:
  Party(Scene& scene, std::string name, bool small_window = false);

  const std::string& name() const { return recorder_.party(); }
  Recorder& recorder() { return recorder_; }
  // Closes its connection: an agent that stops gives clients that are still there time to read.
  void HangUp();
  // All that it has recorded. Once, at the end.
  Recording TakeRecords();

  std::optional<v1::ListChildrenResponse> List();
  void Fork(int child);
  std::optional<v1::SendMessageResponse> Send(const v1::SendMessageRequest& request,
                                              int deadline_ms = 0, int cancel_us = -1);
  void Signal(const std::string& child, int signal);
  void Disconnect(const std::string& child, v1::DisconnectMode mode);
  // Observes until the stream ends, or `enough` says after a response that it is to be given up.
  // Where the observer stands then.
  int64_t Observe(const v1::ObserveRequest& request,
                  const std::function<bool(int64_t call, const v1::ObserveResponse&)>& enough);

 protected:
  void AddEnd(Recorder& recorder, int64_t call, const grpc::Status& status);
  v1::BridgeService::Stub& stub() { return *stub_; }

  Scene& scene_;
  Recorder recorder_;
  std::vector<std::unique_ptr<Recorder>> more_recorders_;

 private:
  template <typename Request, typename Response>
  std::optional<Response> Ask(grpc::Status (v1::BridgeService::Stub::*method)(grpc::ClientContext*,
                                                                              const Request&,
                                                                              Response*),
                              const Request& request, int deadline_ms = 0);

  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::BridgeService::Stub> stub_;
};

// Observes as its plan says, one observation after the other.
class Observer : public Party {
 public:
  Observer(Scene& scene, std::string name, const ObserverPlan& plan)
      : Party(scene, std::move(name), plan.small_window), plan_(plan) {}
  void Run();

  // Where it stands. Any thread.
  int64_t position() const { return position_; }

 private:
  v1::ObserveRequest RequestOf(const ObservationPlan& plan) const;
  void Run(const ObservationPlan& plan);

  const ObserverPlan& plan_;
  std::atomic<int64_t> position_{0};
  google::protobuf::Timestamp time_;  // of the newest event that it was shown
};

class Sender : public Party {
 public:
  Sender(Scene& scene, std::string name, const SenderPlan& plan)
      : Party(scene, std::move(name)), plan_(plan) {}
  void Run();

 private:
  void Do(const Step& step);
  v1::SendMessageRequest Message(const std::string& child, const Step& step);
  void Bad(const std::string& child, const Step& step);
  void Fill(const std::string& child, const Step& step);
  void Attach(const std::string& child, const Step& step);
  std::string Body(int bytes);

  const SenderPlan& plan_;
  int number_ = 0;                            // of its messages
  std::vector<v1::SendMessageRequest> sent_;  // those with an id
};

}  // namespace deka::validator

#endif  // TESTS_VALIDATOR_PARTIES_H_
