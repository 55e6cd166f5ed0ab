// Package e2e holds the tests of the shipped programs against each other: phoenix-cli, a controller and an
// agent in each of several pretend Proxmox hosts, over mutual TLS, on real LXC containers. What a test
// asserts about devices it looks up by itself inside the containers.
package e2e
