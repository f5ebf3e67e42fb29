// Those who talk to the agent during a storm, through the SDK, each with a connection of its own.
//
// Thread: each party's Run() on one of its own; the Scene on any.
#ifndef TESTS_SURVIVAL_PARTIES_H_
#define TESTS_SURVIVAL_PARTIES_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "deka/bridge/v1/bridge_service.grpc.pb.h"
#include "grpcpp/channel.h"
#include "ipc/mutex.h"
#include "sdk/cpp/client.h"
#include "tests/survival/content.h"
#include "tests/survival/killer.h"
#include "tests/survival/ledger.h"

namespace deka::storm {

struct Scene {
  std::string target;
  std::string agent;  // its id
  std::string child_program;
  std::string directory;
  bool small_logs = false;
  uint64_t seed = 0;
  Verdict& verdict;
  Ledger& ledger;

  std::atomic<bool> stopping{false};
  std::atomic<int> kills{0};
  std::atomic<int64_t> epoch{0};
  std::atomic<int64_t> resumes{0};
  // Of sends.
  std::atomic<int64_t> written{0}, accepted{0}, unknown{0}, not_sent{0}, refused{0}, repeated{0};
  std::atomic<int64_t> attached{0}, forks{0}, repeated_forks{0}, reread{0};

  // Ends the program if there is no connection.
  Client Connect(const std::string& name) const;
  v1::ChildSpec SpecOf(const ChildPlan& plan) const;
  void CheckCursor(const std::string& who, const v1::Cursor& cursor);
};

// Observes from the first event until the agent has stopped.
class Watcher {
 public:
  Watcher(Scene& scene, std::string name, v1::ObserveRequest request,
          std::function<bool(const Seen&)> fits);

  // What the witness does beside.
  std::function<void(const v1::Event&)> on_event = {};
  std::function<void(const v1::Gap&)> on_gap = {};
  std::function<void()> on_attached = {};

  void Start();
  void AwaitAttachedSince(Clock::time_point time);
  // After the agent's end: whether it heard of it, and was shown what the witness was.
  void Check();

 private:
  Scene& scene_;
  const std::string name_;
  const v1::ObserveRequest request_;
  const std::function<bool(const Seen&)> fits_;
  Client client_;
  ipc::Mutex mutex_;
  ipc::CondVar changed_;
  Clock::time_point attached_time_ ABSL_GUARDED_BY(mutex_);
  std::vector<Shown> shown_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::Gap> gaps_ ABSL_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  std::unique_ptr<Observation> observation_;
};

// Looks again, after kills, at events that were shown before them.
void Reread(Scene& scene);

// Sends to these children, by their keys, one message after the other, and repeats some.
void SendSingly(Scene& scene, const std::string& name, const std::vector<std::string>& keys,
                size_t bytes_max, bool patient);
// Sends many in one stream, again and again.
void SendAttached(Scene& scene, const std::string& name, const std::string& key);
// Forks children that end, in one way or the other.
void Fork(Scene& scene, const std::string& name);

// Tells a child to stop.
void Stop(Scene& scene, const Client& client, const std::string& key);

}  // namespace deka::storm

#endif  // TESTS_SURVIVAL_PARTIES_H_
