import faulthandler; faulthandler.dump_traceback_later(6,exit=True)
import pinfold, time, os, subprocess, sys
uid=os.getuid()
def units(): return subprocess.run(["systemctl",*(["--user"] if uid else []),"list-units","--all","--no-legend","pinfold*"],capture_output=True,text=True).stdout
print(pinfold.__file__)
for kw in ({}, {"scope_per_run":True}):
    t=time.monotonic()
    try: f=pinfold.Fold(**kw, move_caller="move" in sys.argv)
    except Exception as e: print(type(e),e); continue
    print("open",time.monotonic()-t, f.path)
    with f:
        for i in range(3):
            t=time.monotonic(); r=f.run(["sh","-c","cat /proc/self/cgroup | tail -1; setsid sleep 9 & "],capture_output=True,text=True); print(time.monotonic()-t, r.stdout.strip(), r.outcome, r.placement, r.receipt.strays, r.receipt.removed)
        print(units())
        t=time.monotonic()
        for i in range(100): f.run(["true"])
        print("100 runs", time.monotonic()-t)
        t=time.monotonic()
    print("close",time.monotonic()-t); 
    t=time.monotonic()
    e=time.monotonic()+0.2
    while (u:=units()) and time.monotonic()<e: pass
    print(u, subprocess.run(["sh","-c","find /sys/fs/cgroup -name \"pinfold*\"; for i in $(find /sys/fs/cgroup -path \"*pinfold*\" -name cgroup.procs); do echo $i; cat $i; done"],capture_output=True,text=True).stdout)
    print("gone after", time.monotonic()-t)
t=time.monotonic()
f=pinfold.Fold(backend="cgroupfs") if uid==0 else None
if f:
    t=time.monotonic()
    for i in range(100): f.run(["true"])
    print("cgroupfs 100 runs", time.monotonic()-t)
    f.close()
print(open("/proc/self/cgroup").read())
