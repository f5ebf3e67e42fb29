# Sends every message back in either dialect, with nothing but a POSIX shell; ends when its channel does.
fd=${DEKA_IPC_FD:-$NODE_CHANNEL_FD}
while IFS= read -r line <&"$fd"; do
  printf '%s\n' "$line" >&"$fd"
done
echo "the channel is closed"
