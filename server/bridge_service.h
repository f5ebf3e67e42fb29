// deka.bridge.v1.BridgeService over an Agent: each method a coroutine of its call.
//
// See bridge_service.proto for what the methods do. The service itself decides nothing about
// children: it reads requests, asks the agent, and tells what it answers.
//
// Thread: the calls' thread. The agent outlives it.
#ifndef SERVER_BRIDGE_SERVICE_H_
#define SERVER_BRIDGE_SERVICE_H_

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "agent/agent.h"
#include "deka/bridge/v1/bridge_service.pb.h"
#include "server/call.h"
#include "server/upgrade.h"

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

  struct Options {
    // What every caller is verified to be: the listener takes one user's connections.
    std::string principal = {};
    // Limits that the server enforces, for GetAgent to tell.
    size_t connections_max = 0;
    std::chrono::milliseconds write_stalled_ms_max{};
    Upgrade upgrade = {};  // empty: there is no keeper
  };

  BridgeService(agent::Agent& agent, Options options);

  CallService& service() { return service_; }

 private:
  struct Attachment;

  // A method that the agent answers once: `ask` is given request, caller and callback.
  template <typename Request, typename Response, typename Ask>
  Task AskAgent(Call& call, Ask ask);

  // The agent's answer, with the server's own limits in it.
  void GetAgent(bridge::v1::GetAgentRequest request,
                agent::Done<bridge::v1::GetAgentResponse> done);
  void UpgradeAgent(bridge::v1::UpgradeAgentRequest request,
                    agent::Done<bridge::v1::UpgradeAgentResponse> done);
  Task SendMessage(Call& call);
  Task Observe(Call& call);
  Task Attach(Call& call);
  // The requests of an Attach, as they come.
  Task ReadRequests(Call& call, std::shared_ptr<Attachment> attachment);

  agent::Agent& agent_;
  const Options options_;
  CallService service_;
};

}  // namespace deka::server

#endif  // SERVER_BRIDGE_SERVICE_H_
