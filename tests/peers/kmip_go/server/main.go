// Command server is a key manager in memory on kmip-go's server.
//
//	server -certificate FILE -key FILE -client-ca FILE ADDRESS
package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"

	"github.com/ovh/kmip-go"
	"github.com/ovh/kmip-go/kmipserver"
	"github.com/ovh/kmip-go/payloads"
)

type entry struct {
	object kmip.Object
	names  []string
	active bool
	owner  string
}

// store holds the objects of all clients; a client sees its own.
type store struct {
	mutex   sync.Mutex
	entries map[string]*entry
}

// owner returns the common name of the client's certificate.
func owner(ctx context.Context) string {
	certificates := kmipserver.PeerCertificates(ctx)
	if len(certificates) == 0 {
		return ""
	}
	return certificates[0].Subject.CommonName
}

func (s *store) add(ctx context.Context, object kmip.Object, template kmip.TemplateAttribute) string {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	identifier := fmt.Sprintf("object-%d", len(s.entries)+1)
	var names []string
	for _, attribute := range template.Attribute {
		if name, ok := attribute.AttributeValue.(kmip.Name); ok {
			names = append(names, name.NameValue)
		}
	}
	s.entries[identifier] = &entry{object: object, names: names, owner: owner(ctx)}
	kmipserver.SetIdPlaceholder(ctx, identifier)
	return identifier
}

// find returns the identifier that a request means, and the object.
func (s *store) find(ctx context.Context, requested string) (string, *entry, error) {
	identifier, err := kmipserver.GetIdOrPlaceholder(ctx, requested)
	if err != nil {
		return "", nil, kmipserver.Errorf(kmip.ResultReasonInvalidField, "no Unique Identifier")
	}
	found := s.entries[identifier]
	if found == nil || found.owner != owner(ctx) {
		return "", nil, kmipserver.Errorf(kmip.ResultReasonItemNotFound, "no object %q", identifier)
	}
	return identifier, found, nil
}

func (s *store) create(ctx context.Context, request *payloads.CreateRequestPayload) (*payloads.CreateResponsePayload, error) {
	bits := int32(0)
	for _, attribute := range request.TemplateAttribute.Attribute {
		if length, ok := attribute.AttributeValue.(int32); ok && attribute.AttributeName == kmip.AttributeNameCryptographicLength {
			bits = length
		}
	}
	if bits <= 0 || bits%8 != 0 || bits > 1<<16 {
		return nil, kmipserver.Errorf(kmip.ResultReasonInvalidField, "the Cryptographic Length is wrong")
	}
	value := make([]byte, bits/8)
	_, _ = rand.Read(value)
	key := &kmip.SymmetricKey{KeyBlock: kmip.KeyBlock{
		KeyFormatType:          kmip.KeyFormatTypeRaw,
		KeyValue:               &kmip.KeyValue{Plain: &kmip.PlainKeyValue{KeyMaterial: kmip.KeyMaterial{Bytes: &value}}},
		CryptographicAlgorithm: kmip.CryptographicAlgorithmAES,
		CryptographicLength:    bits,
	}}
	return &payloads.CreateResponsePayload{
		ObjectType: request.ObjectType, UniqueIdentifier: s.add(ctx, key, request.TemplateAttribute),
	}, nil
}

func (s *store) register(ctx context.Context, request *payloads.RegisterRequestPayload) (*payloads.RegisterResponsePayload, error) {
	return &payloads.RegisterResponsePayload{UniqueIdentifier: s.add(ctx, request.Object, request.TemplateAttribute)}, nil
}

func (s *store) get(ctx context.Context, request *payloads.GetRequestPayload) (*payloads.GetResponsePayload, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	identifier, found, err := s.find(ctx, request.UniqueIdentifier)
	if err != nil {
		return nil, err
	}
	return &payloads.GetResponsePayload{
		ObjectType: found.object.ObjectType(), UniqueIdentifier: identifier, Object: found.object,
	}, nil
}

func (s *store) locate(ctx context.Context, request *payloads.LocateRequestPayload) (*payloads.LocateResponsePayload, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	found := []string{}
	for identifier, entry := range s.entries {
		matches := entry.owner == owner(ctx)
		for _, attribute := range request.Attribute {
			if name, ok := attribute.AttributeValue.(kmip.Name); ok && !slices.Contains(entry.names, name.NameValue) {
				matches = false
			}
		}
		if matches {
			found = append(found, identifier)
		}
	}
	slices.Sort(found)
	return &payloads.LocateResponsePayload{UniqueIdentifier: found}, nil
}

func (s *store) activate(ctx context.Context, request *payloads.ActivateRequestPayload) (*payloads.ActivateResponsePayload, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	identifier, found, err := s.find(ctx, request.UniqueIdentifier)
	if err != nil {
		return nil, err
	}
	found.active = true
	return &payloads.ActivateResponsePayload{UniqueIdentifier: identifier}, nil
}

func (s *store) revoke(ctx context.Context, request *payloads.RevokeRequestPayload) (*payloads.RevokeResponsePayload, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	identifier, found, err := s.find(ctx, request.UniqueIdentifier)
	if err != nil {
		return nil, err
	}
	found.active = false
	return &payloads.RevokeResponsePayload{UniqueIdentifier: identifier}, nil
}

func (s *store) destroy(ctx context.Context, request *payloads.DestroyRequestPayload) (*payloads.DestroyResponsePayload, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	identifier, found, err := s.find(ctx, request.UniqueIdentifier)
	if err != nil {
		return nil, err
	}
	if found.active {
		return nil, kmipserver.Errorf(kmip.ResultReasonPermissionDenied, "the object is active")
	}
	s.entries[identifier] = &entry{owner: "nobody"} // so that no identifier is given twice
	return &payloads.DestroyResponsePayload{UniqueIdentifier: identifier}, nil
}

func (s *store) query(context.Context, *payloads.QueryRequestPayload) (*payloads.QueryResponsePayload, error) {
	return &payloads.QueryResponsePayload{
		Operations: []kmip.Operation{
			kmip.OperationCreate, kmip.OperationRegister, kmip.OperationGet, kmip.OperationLocate, kmip.OperationActivate,
			kmip.OperationRevoke, kmip.OperationDestroy, kmip.OperationQuery, kmip.OperationDiscoverVersions,
		},
		ObjectType: []kmip.ObjectType{kmip.ObjectTypeSymmetricKey, kmip.ObjectTypeSecretData},
	}, nil
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	certificate := flag.String("certificate", "", "certificate of the server, PEM")
	key := flag.String("key", "", "key of the server, PEM")
	clientCA := flag.String("client-ca", "", "CA of the clients, PEM")
	flag.Parse()
	slog.SetDefault(slog.New(slog.NewTextHandler(io.Discard, nil)))
	pair, err := tls.LoadX509KeyPair(*certificate, *key)
	fail(err)
	pem, err := os.ReadFile(*clientCA)
	fail(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	listener, err := tls.Listen("tcp", flag.Arg(0), &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots,
	})
	fail(err)
	s := &store{entries: map[string]*entry{}}
	executor := kmipserver.NewBatchExecutor()
	executor.Route(kmip.OperationCreate, kmipserver.HandleFunc(s.create))
	executor.Route(kmip.OperationRegister, kmipserver.HandleFunc(s.register))
	executor.Route(kmip.OperationGet, kmipserver.HandleFunc(s.get))
	executor.Route(kmip.OperationLocate, kmipserver.HandleFunc(s.locate))
	executor.Route(kmip.OperationActivate, kmipserver.HandleFunc(s.activate))
	executor.Route(kmip.OperationRevoke, kmipserver.HandleFunc(s.revoke))
	executor.Route(kmip.OperationDestroy, kmipserver.HandleFunc(s.destroy))
	executor.Route(kmip.OperationQuery, kmipserver.HandleFunc(s.query))
	fail(kmipserver.NewServer(listener, executor).WithMaxMessageSize(2 << 20).Serve())
}
