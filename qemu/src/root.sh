# Sourced by /hv/init, as the first process: mounts the root file system and hands over to the init that is there.
fail() {
	echo "hv: $1"
	$bb poweroff -f
}
# Devices that answer late are waited for; a disk's serial number says which it is, whatever its letter.
root=
tries=0
while [ -z "$root" ] && [ $tries -lt 50 ]; do
	for disk in /sys/block/vd*; do
		[ "$($bb cat "$disk/serial" 2>/dev/null)" != hv-root ] || root=/dev/${disk##*/}
	done
	[ -n "$root" ] || $bb usleep 100000
	tries=$((tries + 1))
done
[ -n "$root" ] || fail "the disk with the root file system is not there: does the kernel have drivers for virtio-mmio and virtio-blk?"
$bb mkdir -p /newroot
# The whole disk, or the first part of one that is divided.
$bb mount -t ext4 "$root" /newroot 2>/dev/null || $bb mount -t ext4 "${root}1" /newroot 2>/dev/null ||
	fail "there is no ext4 file system on the disk, nor on its first partition"
[ -e /newroot/sbin/init ] || [ -L /newroot/sbin/init ] || fail "the root file system has no /sbin/init"

if [ -e /hv/run ]; then
	[ -e /newroot/lib/systemd/systemd ] || [ -e /newroot/usr/lib/systemd/systemd ] ||
		fail "a command can be run in a root file system with systemd only: there is none"
	# All that is added lies in /run, which is memory: the file system itself stays what it is.
	$bb mount -t tmpfs -o mode=755,nosuid,nodev run /newroot/run
	$bb mkdir -p /newroot/run/hv /newroot/run/systemd/system/multi-user.target.wants
	$bb cp /hv/run /hv/nonce /newroot/run/hv/
	$bb cat >/newroot/run/hv/command <<'END'
#!/bin/sh
# Between the two marks is the command's output and nothing else, byte for byte.
exec >/dev/console 2>&1 </dev/null
stty -F /dev/console raw -echo
mark="hv-$(cat /run/hv/nonce)"
echo "$mark begin"
sh /run/hv/run
printf '\n%s status %d\n' "$mark" $?
systemctl poweroff --no-block
END
	# Not part of the start-up: `systemctl is-system-running --wait` in it would wait for itself.
	$bb cat >/newroot/run/systemd/system/hv-run.service <<'END'
[Unit]
Description=The command of cargo hv linux --run
After=multi-user.target network-online.target
Wants=network-online.target

[Service]
Type=simple
ExecStart=/bin/sh /run/hv/command
WorkingDirectory=-/root
Environment=HOME=/root LANG=C.UTF-8 TERM=dumb
Environment=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
END
	$bb ln -s ../hv-run.service /newroot/run/systemd/system/multi-user.target.wants/hv-run.service
	# Nobody else writes on the console.
	$bb ln -s /dev/null /newroot/run/systemd/system/serial-getty@ttyAMA0.service
fi
$bb umount /tmp /sys/kernel/debug 2>/dev/null
for folder in dev proc sys; do
	$bb mount --move /$folder /newroot/$folder || fail "the root file system has no folder /$folder"
done
# busybox deletes the initramfs only if it looks like one.
: >/init
exec $bb switch_root /newroot /sbin/init
