// Who can put another program in the agent's place: see UpgradeAgent in bridge_service.proto.
#ifndef SERVER_UPGRADE_H_
#define SERVER_UPGRADE_H_

#include <functional>

#include "agent/agent.h"
#include "deka/bridge/v1/bridge_service.pb.h"

namespace deka::server {

// For an agent that was meant. Called on its loop.
using Upgrade = std::function<void(bridge::v1::UpgradeAgentRequest,
                                   agent::Done<bridge::v1::UpgradeAgentResponse>)>;

}  // namespace deka::server

#endif  // SERVER_UPGRADE_H_
