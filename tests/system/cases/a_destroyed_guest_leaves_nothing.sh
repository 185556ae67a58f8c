# A guest destroyed as it boots leaves no mapped grant, bound port or backend node; and they are counted.
before=$(leftovers)
ports_before=$(ports_bound)
create_guest doomed pv
# xenconsoled binds its port when it hears of the guest; xenstored has bound its own by then.
wait_for 60 "the guest has a console" tty_of doomed
expect "ports of a guest without devices: xenstore and console" "$(ports_bound)" = $((ports_before + 2))
destroy doomed
expect "leftovers" "$(leftovers)" = "$before"
