// grpc.health.v1.Health: whether the server serves.
//
// Its messages are read and written as protobuf's wrappers, which have the same bytes: a request is
// {string service = 1}, a response {enum status = 1}.
#ifndef SERVER_HEALTH_SERVICE_H_
#define SERVER_HEALTH_SERVICE_H_

#include <atomic>
#include <string>
#include <vector>

#include "server/call.h"

namespace deka::server {

class HealthService {
 public:
  // Knows "" (the server) and these services. All serve at first.
  explicit HealthService(std::vector<std::string> services);

  CallService& service() { return service_; }

  // Answers NOT_SERVING from now on; who watches is told when its call looks again, see
  // CallThread::LookAtCalls. Any thread.
  void Stop() { serving_ = false; }

 private:
  enum Status { kNone = 0, kServing = 1, kNotServing = 2, kServiceUnknown = 3 };

  Status StatusOf(const std::string& service) const;

  Task Check(Call& call);
  Task Watch(Call& call);

  const std::vector<std::string> services_;
  std::atomic<bool> serving_{true};
  CallService service_;
};

}  // namespace deka::server

#endif  // SERVER_HEALTH_SERVICE_H_
