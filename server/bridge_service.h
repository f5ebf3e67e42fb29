// deka.bridge.v1.BridgeService over an Agent: each method a coroutine of its call.
//
// See bridge_service.proto for what the methods do. The service itself decides nothing about
// children: it reads requests, asks the agent, and tells what it answers.
//
// Thread: the calls' thread. The agent outlives it.
#ifndef SERVER_BRIDGE_SERVICE_H_
#define SERVER_BRIDGE_SERVICE_H_

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "agent/agent.h"
#include "server/call.h"

namespace deka::server {

class BridgeService {
 public:
  static constexpr std::string_view kName = "deka.bridge.v1.BridgeService";

  // Requests of one Attach that the agent has and has not accepted yet: its client fills them while
  // the answers come, and is not read beyond them.
  static constexpr size_t kUnacceptedRequestsMax = 64;
  static constexpr size_t kUnacceptedBytesMax = 256 << 10;  // or one larger message
  // Requests of one Attach that are under way, or whose answers wait to be written.
  static constexpr size_t kUnansweredRequestsMax = 16384;

  // `principal` is what every caller is verified to be: the listener takes one user's connections.
  BridgeService(agent::Agent& agent, std::string principal);

  CallService& service() { return service_; }

 private:
  struct Attachment;

  // A method that the agent answers once: `ask` is given request, caller and callback.
  template <typename Request, typename Response, typename Ask>
  Task AskAgent(Call& call, Ask ask);

  Task SendMessage(Call& call);
  Task Observe(Call& call);
  Task Attach(Call& call);
  // The requests of an Attach, as they come.
  Task ReadRequests(Call& call, std::shared_ptr<Attachment> attachment);

  agent::Agent& agent_;
  const std::string principal_;
  CallService service_;
};

}  // namespace deka::server

#endif  // SERVER_BRIDGE_SERVICE_H_
