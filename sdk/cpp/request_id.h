// Ids by which the agent knows a request that it was sent twice.
#ifndef SDK_CPP_REQUEST_ID_H_
#define SDK_CPP_REQUEST_ID_H_

#include <string>

namespace deka {

// 128 random bits in hexadecimal.
std::string NewRequestId();

}  // namespace deka

#endif  // SDK_CPP_REQUEST_ID_H_
