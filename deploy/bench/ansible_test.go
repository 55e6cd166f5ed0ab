package bench_test

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

const ansibleRounds = 3

// sshPort is on the loopback of the node, which is the node's own.
const sshPort = 42022

// ssh is set up as is best for Ansible: keys, connections that are kept, a login shell that starts fast.
const setUpSSH = `
cd ` + prepared + `
mkdir -p home ssh /run/sshd
ssh-keygen -q -t ed25519 -N '' -f ssh/key
ssh-keygen -q -t ed25519 -N '' -f ssh/host
sed 's,^root:.*,root:x:0:0:root:` + prepared + `/home:/bin/dash,' /etc/passwd > ssh/passwd
rm /etc/passwd /etc/shadow # links of the node to the machine's own
mv ssh/passwd /etc/passwd
echo 'root:*:20000:0:99999:7:::' > /etc/shadow
cat > ssh/config <<END
Port %[1]d
ListenAddress 127.0.0.1
HostKey ` + prepared + `/ssh/host
AuthorizedKeysFile ` + prepared + `/ssh/key.pub
StrictModes no
UsePAM no
PidFile none
END
/usr/sbin/sshd -f $PWD/ssh/config -E $PWD/ssh/log
`

var sshOptions = []string{
	"-i", prepared + "/ssh/key", "-o", "ControlMaster=auto", "-o", "ControlPersist=10m", "-o", "ControlPath=" + prepared + "/ssh/control",
	"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
}

const inventory = "node ansible_host=127.0.0.1\n"

const ansibleConfig = `[defaults]
inventory = ` + prepared + `/hosts
remote_user = root
remote_port = %d
forks = 50
gathering = explicit
interpreter_python = /usr/bin/python3
[ssh_connection]
pipelining = True
ssh_args = %s
`

const playbook = `- hosts: node
  gather_facts: false
  tasks:
    - copy: {src: "` + prepared + `/{{ gpu }}/{{ item }}.conf", dest: "/etc/pve/lxc/{{ item }}.conf", mode: "0640"}
      loop: "{{ ctids }}"
    - command: lxc-stop -n {{ item }} -k
      loop: "{{ ctids }}"
    - command: lxc-start -n {{ item }} -d
      loop: "{{ ctids }}"
    - command: lxc-attach -n {{ item }} -- true
      loop: "{{ ctids }}"
`

// startSSH starts an sshd in the node, once, and returns the command that runs another through it; nil if this machine
// has no ssh.
func (h *host) startSSH(t *testing.T) []string {
	t.Helper()
	for _, program := range []string{"/usr/sbin/sshd", "ssh", "ssh-keygen"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil
		}
	}
	if !h.ssh {
		h.inside(t, order{Argv: []string{"sh", "-ec", fmt.Sprintf(setUpSSH, sshPort)}})
		h.ssh = true
	}
	return append(append([]string{"ssh", "-p", fmt.Sprint(sshPort)}, sshOptions...), "root@127.0.0.1")
}

// ansible returns what runs the playbook for a GPU, nil if this machine has no Ansible.
func (m *measuring) ansible(t *testing.T, h *host) func(gpu int) order {
	t.Helper()
	if m.small {
		return nil
	}
	_, err := exec.LookPath("ansible-playbook")
	if err != nil || h.startSSH(t) == nil {
		m.noteOnce("Ansible sat out: it takes Debian's packages ansible and openssh-server.")
		return nil
	}
	dir := h.node.Dir() + prepared
	h.write(dir+"/hosts", inventory)
	h.write(dir+"/ansible.cfg", fmt.Sprintf(ansibleConfig, sshPort, strings.Join(sshOptions, " ")))
	h.write(dir+"/play.yml", playbook)
	ctids := strings.Join(strings.Fields(fmt.Sprint(h.ctids)), ",")
	return func(gpu int) order {
		return order{
			Argv: []string{"ansible-playbook", prepared + "/play.yml", "-e", fmt.Sprintf(`{"gpu": %d, "ctids": %s}`, gpu, ctids)},
			Env:  []string{"ANSIBLE_CONFIG=" + prepared + "/ansible.cfg", "HOME=" + prepared + "/home"},
		}
	}
}
