// Observers that cost as little as observers can, so that what is measured is the agent: each has a
// connection of its own, one thread reads for all of them and counts events without parsing them.
//
// Thread: any; the callback comes on the one that reads.
#ifndef TESTS_BENCHMARK_WATCHERS_H_
#define TESTS_BENCHMARK_WATCHERS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "deka/bridge/v1/bridge_service.pb.h"
#include "grpcpp/completion_queue.h"
#include "grpcpp/support/byte_buffer.h"
#include "ipc/mutex.h"

namespace deka::benchmark {

class Watchers {
 public:
  // Starts `count` observations; answers when all of them stand.
  static absl::StatusOr<std::unique_ptr<Watchers>> Start(const std::string& target,
                                                         const bridge::v1::ObserveRequest& request,
                                                         int count);
  ~Watchers();

  Watchers(const Watchers&) = delete;
  Watchers& operator=(const Watchers&) = delete;

  // Waits until every observer was shown `events` more events than when this was last called. Fails
  // if one of them was told of a gap, or has ended.
  absl::Status AwaitEach(int64_t events);

  // How many responses brought them, to all observers.
  int64_t responses() const;

 private:
  class Watcher;

  Watchers() = default;
  absl::Status AwaitStanding();
  void Read();
  void Take(Watcher& watcher, grpc::ByteBuffer& response);
  void Fail(absl::Status status);

  grpc::CompletionQueue queue_;
  std::vector<std::unique_ptr<Watcher>> watchers_;
  std::thread thread_;

  mutable ipc::Mutex mutex_;
  ipc::CondVar changed_;
  int64_t wanted_ ABSL_GUARDED_BY(mutex_) = 0;    // events of each
  size_t satisfied_ ABSL_GUARDED_BY(mutex_) = 0;  // watchers that have them
  size_t standing_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t responses_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace deka::benchmark

#endif  // TESTS_BENCHMARK_WATCHERS_H_
