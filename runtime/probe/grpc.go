package probe

import (
	"context"
	"fmt"
	"net"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
)

func runGRPC(ctx context.Context, a *v1.GRPCAction, t Target) Outcome {
	addr := net.JoinHostPort(t.IP, strconv.Itoa(int(a.Port)))
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent(userAgent),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxOutput)))
	if err != nil {
		return Outcome{Failure, err.Error()}
	}
	defer conn.Close()
	service := ""
	if a.Service != nil {
		service = *a.Service
	}
	resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service})
	if err != nil {
		switch s := status.Convert(err); s.Code() {
		case codes.Unimplemented:
			return Outcome{Failure, "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): " + s.Message()}
		case codes.DeadlineExceeded:
			return Outcome{Failure, fmt.Sprintf("timeout: health rpc to %s did not complete in time", addr)}
		default:
			return Outcome{Failure, fmt.Sprintf("error: health rpc probe failed: %v", err)}
		}
	}
	if resp.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		return Outcome{Failure, fmt.Sprintf("service unhealthy (responded with %q)", resp.GetStatus())}
	}
	return Outcome{Success, "service healthy"}
}
