"""The benchmark behind `scripts/bench`: wsrelay beside its peers, in one run on one machine.

workloads   what is measured, in which cases, of whom (workloads.toml)
peers       those who are measured, each with its `start`; `served` is what they run
server      a peer's processes: started, their CPU time and memory read, ended
load        how each workload is measured; `client` is one connection
run         the peers take turns at each workload
results     the figures; `report` shows them beside the goals (goals.toml), `plot` as a picture
machine     where and under which conditions it was measured
"""
