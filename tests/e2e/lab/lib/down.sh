# The end of the lab. Sourced by lab.

# down: nothing of it runs or is mounted any more, whatever state it was in; binaries, images and logs stay.
down() {
  local machine
  for machine in $(machines); do machine_off "$machine"; done
  for machine in $(machines); do stragglers_end "$machine"; done
  devices_remove_dead
  for machine in $(machines); do ip netns del "$(netns_of "$machine")"; done
  wait_for 30 cgroups_remove
  rm -rf --one-file-system "$MACHINES" "$PKI"
}

# machines: those that have a network, also those of a failed start.
machines() { ip netns list | awk '{ print $1 }' | sed -n "s/^$LAB_NAME-\(cp\|n[0-9]\)\$/\1/p"; }

# stragglers_end MACHINE: what a failed start left in its network without a first process.
stragglers_end() {
  local pids
  for pids in $(ip netns pids "$(netns_of "$1")"); do kill -KILL "$pids" || true; done
  wait_for 60 netns_empty "$1"
}

netns_empty() { [ -z "$(ip netns pids "$(netns_of "$1")")" ]; }
