# Says hello in the deka dialect, waits for one message, and ends with code 3.
say() { printf '{"cmd":"NODE_HANDLE","msg":%s}\n' "$1" >&"$DEKA_IPC_FD"; }
say '{"hello":"from a shell"}'
IFS= read -r line <&"$DEKA_IPC_FD"
say "{\"length\":${#line}}"
exit 3
