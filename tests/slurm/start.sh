#!/usr/bin/env bash
# Starts a real Slurm on this one host for the tests beside this file, and says how to reach it:
#
#   eval "$(tests/slurm/start.sh)"; sinfo        tests find it without that; tests/slurm/stop.sh ends it
#
# Two nodes of two fake GPUs each, accounting, and preemption of partition low by partition high. Root on Debian is
# needed: the packages are installed where they are missing, and the daemons run without systemd and cgroups. All its
# files are in $VLMFT_SLURM, also slurm.conf, so a Slurm that the host belongs to is left alone.
set -euo pipefail
BASE=${VLMFT_SLURM:-/tmp/vlmft-slurm}
NODES=(127.0.0.1 127.0.0.2) # by names that torch finds, as a node's is where the ranks of several meet
CONTROL=27817 ACCOUNTING=27819 DATABASE=27306 NODE=27001
export PATH="$PATH:/usr/sbin:/sbin" SLURM_CONF="$BASE/slurm.conf"

give_up() {
  echo "no Slurm here: $1" >&2
  exit 1
}

alive() { # by the program and not by kill -0, which also finds zombies, and others with the number of one that is gone
  local pid
  pid=$(cat "$BASE/run/$1.pid" 2>/dev/null) && [[ "$(readlink "/proc/$pid/exe")" == */"${1%%-*}"* ]]
}

listens() {
  timeout 30 bash -c "until (: </dev/tcp/127.0.0.1/$2) 2>/dev/null; do sleep 0.1; done" ||
    give_up "$1 did not begin to listen on port $2; see $BASE/log"
}

[ "$(id -u)" = 0 ] || give_up "it takes root to start one"
if ! command -v slurmctld slurmd slurmdbd sbatch munged mariadbd setpriv >/dev/null; then
  command -v apt-get >/dev/null || give_up "its packages are missing, and there is no apt-get"
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
    slurm-wlm slurmdbd munge mariadb-server-core util-linux; } >&2 || give_up "its packages cannot be installed"
fi

mkdir -p "$BASE"/{run,log,state,spool}
install -d -o slurm "$BASE/database"
for gpu in 0 1; do # /dev/null by another name: Slurm only hands it out
  [ -c "$BASE/gpu$gpu" ] || mknod "$BASE/gpu$gpu" c 1 3 || give_up "device files cannot be made, as in some containers"
done

cat >"$BASE/gres.conf" <<CONF
Name=gpu File=$BASE/gpu[0-1] Flags=nvidia_gpu_env
CONF

# Twice as many CPUs as there may be (config_overrides), so that jobs of tests share the host; quick to schedule, to
# requeue (a credential's life is waited for) and to kill.
cat >"$BASE/slurm.conf" <<CONF
ClusterName=vlmft
SlurmctldHost=localhost
SlurmctldPort=$CONTROL
SlurmUser=root
AuthInfo=cred_expire=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1
ReturnToService=2
KillWait=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort=$ACCOUNTING
GresTypes=gpu
StateSaveLocation=$BASE/state
SlurmdSpoolDir=$BASE/spool/%n
SlurmctldPidFile=$BASE/run/slurmctld.pid
SlurmdPidFile=$BASE/run/slurmd-%n.pid
SlurmctldLogFile=$BASE/log/slurmctld.log
SlurmdLogFile=$BASE/log/slurmd-%n.log
NodeName=${NODES[0]} NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$NODE CPUs=4 RealMemory=8000 Gres=gpu:2
NodeName=${NODES[1]} NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((NODE + 1)) CPUs=4 RealMemory=8000 Gres=gpu:2
PartitionName=main Nodes=ALL Default=YES DefaultTime=60 DefMemPerCPU=500 PreemptMode=OFF
PartitionName=low Nodes=${NODES[0]} DefaultTime=60 DefMemPerCPU=500 PriorityTier=1 GraceTime=60
PartitionName=high Nodes=${NODES[0]} DefaultTime=60 DefMemPerCPU=500 PriorityTier=9
CONF

install -m 600 /dev/stdin "$BASE/slurmdbd.conf" <<CONF
DbdHost=localhost
DbdPort=$ACCOUNTING
SlurmUser=root
AuthInfo=cred_expire=10
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$DATABASE
StorageUser=slurm
StorageLoc=vlmft_slurm
PidFile=$BASE/run/slurmdbd.pid
LogFile=$BASE/log/slurmdbd.log
CONF

if ! munge --no-input >/dev/null 2>&1; then # one that runs already will do
  install -d -o munge -g munge /run/munge
  setpriv --reuid=munge --regid=munge --clear-groups munged >&2
  cp /run/munge/munged.pid "$BASE/run/munged.pid"
fi
if ! alive mariadbd; then # an empty folder and no rights will do, on this host alone
  setsid mariadbd --no-defaults --user=slurm --datadir="$BASE/database" --socket="$BASE/database/socket" \
    --bind-address=127.0.0.1 --port="$DATABASE" --skip-grant-tables --innodb-flush-log-at-trx-commit=0 \
    >>"$BASE/log/mariadbd.log" 2>&1 </dev/null &
  echo $! >"$BASE/run/mariadbd.pid"
fi
listens mariadbd "$DATABASE"
alive slurmdbd || slurmdbd >&2
listens slurmdbd "$ACCOUNTING"
alive slurmctld || slurmctld >&2
for node in "${NODES[@]}"; do
  alive "slurmd-$node" || slurmd -N "$node" >&2
done

for _ in $(seq 60); do # nodes are called idle before they answer
  if srun --quiet --nodes=2 --immediate=2 --time=1 true 2>/dev/null; then
    echo "export SLURM_CONF=$SLURM_CONF"
    exit 0
  fi
  sleep 0.5
done
give_up "it did not come up; see $BASE/log"
